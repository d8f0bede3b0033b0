"""The MLflow run of a job as launch sees it: found when a worker opens it, fed while the job lives, closed truly."""

import time
from collections.abc import Callable, Sequence

from mlflow.entities import RunTag

from trainer.launch.closing import close_run
from trainer.launch.system_metrics import SystemMetrics
from trainer.launch.workers import Ending
from trainer.tracking import calls, server, spool
from trainer.tracking.batches import record_of
from trainer.tracking.delivery import Delivery
from trainer.tracking.history import DRIFT, History
from trainer.tracking.job import EndRecord, Job
from trainer.tracking.schemes import MAX_TAG_LENGTH

END_TAGS = ("failure", "killed_by")
"""What a run's tags say about its end."""
HOST = "environment.host"
"""No setting: in a container it is another one at every start."""


class JobRun:
    """A job's one run.

    Args:
        job: Whose run.
        uri: http(s) URL of the MLflow server.
        provenance: Tags that say what the run was made from.
        gpus: NVML's indices of the GPUs that the job runs on.
        say: Called with a line for the user.
    """

    def __init__(
        self, job: Job, uri: str, provenance: dict[str, str], gpus: Sequence[int], say: Callable[[str], None]
    ) -> None:
        self._job = job
        self._provenance = provenance
        self._gpus = gpus
        self._say = say
        self._delivery = Delivery(job, uri, say, reopened=job.resumes > 0)
        self._system_metrics: SystemMetrics | None = None
        self.status_name = "RUNNING"

    @property
    def url(self) -> str | None:
        """Where the user can open the run; None while the server has none."""
        record = self._job.run_record()
        return None if record is None or record.promised else server.run_url(record)

    def found(self) -> bool:
        """True once, at the first call after a worker has opened the run; recording starts with it.

        A job that fails before it has anything to record, at a typo say, thus leaves no run behind.
        """
        if self._system_metrics is not None or (record := self._job.run_record()) is None:
            return False
        before = History(self._job)
        records = [record_of(record.run_id, [], [], self._tags(record.run_id, before))]
        # Behind what the spool says of an end that was none.
        ends = [key for key in END_TAGS if before.tag(record.run_id, key) is not None]
        records += [calls.removal_of_tag(record.run_id, key) for key in ends]
        try:
            for one in records:
                spool.append(self._job.spool, one)
        except OSError:  # a full disk; the next call tries again
            return False
        self._delivery.start()
        self._system_metrics = SystemMetrics(self._job, self._gpus, self._say)
        self._system_metrics.start()
        return True

    def _tags(self, run_id: str, before: History) -> list[RunTag]:
        """Provenance; where the job goes on, how it has changed since: the run's results rest on both."""
        if not self._job.resumes:  # what is in the spool already is of this very start
            return [RunTag(key, value) for key, value in self._provenance.items()]
        tags = {key: value for key, value in self._provenance.items() if before.tag(run_id, key) is None}
        for key in self._provenance.keys() - tags.keys() - {HOST}:
            if drift := before.drift(run_id, key, self._provenance[key]):
                tags[DRIFT + key] = drift[:MAX_TAG_LENGTH]
        tags["resumes"] = str(self._job.resumes)
        return [RunTag(key, value) for key, value in tags.items()]

    def close(self, ending: Ending, patience: float, give_up: Callable[[], bool]) -> bool:
        """Deliver everything and set the status; False if the server could not be reached for `patience` seconds."""
        end = _end_record(ending)
        if self._system_metrics is not None:
            self._system_metrics.close()
        delivered = close_run(self._job, self._delivery, end, patience, self._say, give_up)
        self.status_name = end.status + ("" if delivered else " (the server does not know all of it)")
        return delivered

    def latest_metrics(self) -> dict[str, float]:
        return self._delivery.latest


def _end_record(ending: Ending) -> EndRecord:
    now = int(time.time() * 1000)
    if ending.killed_by is not None:
        return EndRecord("KILLED", ending.exit_code, now, {"killed_by": ending.killed_by.name})
    if ending.error is not None:
        return EndRecord("FAILED", ending.exit_code, now, {"failure": ending.error})
    return EndRecord("FINISHED", ending.exit_code, now, {})
