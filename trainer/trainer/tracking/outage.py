"""How long a server was away from a job, as a metric of its run; counted through a restart of launch too."""

import contextlib
import time

from trainer.tracking import spool
from trainer.tracking.history import History
from trainer.tracking.job import Job
from trainer.whole_file import write_whole

TRACKING = "outage_seconds"
"""Of the tracking server: one point for each outage, in seconds, at the time when it began."""
ARTIFACTS = "artifact_outage_seconds"
"""The same of the artifact store."""


class Outage:
    """One kind of outage of one job.

    Args:
        job: Whose; where the outage began is kept in its folder.
        metric: Name of the metric that gets the length.
    """

    def __init__(self, job: Job, metric: str) -> None:
        self._job = job
        self._metric = metric
        self._file = job.folder / f"{metric}.began"
        self._began = self._read()
        self._said = False

    def _read(self) -> float | None:
        """When an outage began that the last launch did not see the end of, in seconds since the epoch."""
        try:
            began = float(self._file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return began if 0 < began <= time.time() else None

    @property
    def lasts(self) -> bool:
        return self._began is not None

    def begin(self) -> bool:
        """The server does not answer. Returns whether the user is to be told."""
        if self._began is None:
            self._began = time.time()
            with contextlib.suppress(OSError):  # a full disk: then it is counted as long as this process lives
                write_whole(self._file, f"{self._began:.3f}")
        news, self._said = not self._said, True
        return news

    def end(self) -> float | None:
        """The server is back. Returns the seconds that it was away, or None where it was not, or was said to be."""
        began = self._began
        if began is None:
            return None
        record = self._job.run_record()
        assert record is not None, "an outage is of a job that has a run"
        seconds = time.time() - began
        point = {
            "key": self._metric,
            "value": round(seconds, 1),
            "timestamp": int(began * 1000),
            "step": History(self._job).next_step(record.run_id, self._metric),
        }
        try:
            spool.append(self._job.spool, {"run_id": record.run_id, "metrics": [point], "params": [], "tags": []})
        except OSError:  # a full disk; told when it has room
            return None
        self._file.unlink(missing_ok=True)
        self._began, self._said = None, False
        return seconds
