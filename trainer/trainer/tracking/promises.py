"""Names for what the server has not made yet: the job's run, a logged model, where its files go.

Their ids come from the server. Where it is away, the job goes on under an id of its own, and launch puts the real one
in its place in everything that it delivers. The ids are random, so that a replacement in text finds nothing else.
"""

import json
import uuid

from trainer.tracking.job import Job
from trainer.whole_file import write_whole

URI = "promised:/"
"""Scheme of the place that artifacts go to once the server has said where that is."""
REFUSED = "refused:/"
"""Scheme of the place that artifacts would have gone to, had the server not refused what they are of."""
EXPERIMENT = "promised:"
"""Before an experiment's name: its id, until the server has given one."""


def run_id() -> str:
    return uuid.uuid4().hex


def model_id() -> str:
    return f"m-{uuid.uuid4().hex}"


def uri() -> str:
    return URI + uuid.uuid4().hex


def refused_uri() -> str:
    return REFUSED + uuid.uuid4().hex


class Promises:
    """What the server has given in the place of each promised name; kept in the job's folder.

    Args:
        job: Whose. Launch alone writes, and each worker reads.
    """

    def __init__(self, job: Job) -> None:
        self._file = job.folder / "promises.json"
        self._kept: dict[str, str] = {}
        self._read_at = 0

    def keep(self, given: dict[str, str]) -> None:
        """Record what the server has given: promised name to real one. On disk when this returns."""
        write_whole(self._file, json.dumps({**self._known(), **given}, indent=2))

    def in_text(self, text: str) -> str:
        """The same text with real names where they are known."""
        for promised, given in self._known().items():
            text = text.replace(promised, given)
        return text

    def in_record(self, record: dict) -> dict:
        """The same spool record with real names where they are known."""
        return json.loads(self.in_text(json.dumps(record))) if self._known() else record

    def _known(self) -> dict[str, str]:
        try:
            written = self._file.stat().st_mtime_ns
        except FileNotFoundError:
            return self._kept
        if written != self._read_at:
            self._kept, self._read_at = json.loads(self._file.read_text()), written
        return self._kept
