"""One job's folder on disk: the one run it owns, what is still to be delivered, its checkpoints."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

JOB_DIR_VARIABLE = "TRAINER_JOB_DIR"


@dataclass(frozen=True)
class RunRecord:
    """The MLflow run that a job has; written once, when the run is created on the server."""

    run_id: str
    experiment_id: str
    experiment: str
    name: str
    artifact_uri: str
    start_time: int
    """Milliseconds since the epoch."""
    user_id: str


class Job:
    """A job's folder. Launch and every worker of the job open the same one.

    Args:
        folder: `$LAB_DIR/state/<job>/<attempt>`; the attempt's name is the run's name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_this_process(cls) -> "Job":
        """The job that launch started this process for.

        Raises:
            RuntimeError: The process was not started by `trainer`.
        """
        folder = os.environ.get(JOB_DIR_VARIABLE)
        if not folder:
            raise RuntimeError(f"{JOB_DIR_VARIABLE} is not set: a job+http tracking URI works only under `trainer`")
        return cls(Path(folder))

    @property
    def run_name(self) -> str:
        return self.folder.name

    @property
    def spool(self) -> Path:
        """What the job wrote and the server may not have yet (spool.py)."""
        return self.folder / "spool.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def failures(self) -> Path:
        """One file for each rank that failed (failure.py)."""
        return self.folder / "failures"

    @property
    def logs(self) -> Path:
        """What ranks other than local rank 0 print, as torchrun lays it out."""
        return self.folder / "logs"

    @property
    def _arguments_file(self) -> Path:
        return self.folder / "arguments.json"

    def write_arguments(self, arguments: list[str]) -> None:
        """Record what the workers are to do."""
        self._arguments_file.write_text(json.dumps(arguments))

    def arguments(self) -> list[str]:
        return json.loads(self._arguments_file.read_text())

    @property
    def _run_file(self) -> Path:
        return self.folder / "run.json"

    def run_record(self) -> RunRecord | None:
        """The job's run, or None while nobody has asked for one."""
        try:
            return RunRecord(**json.loads(self._run_file.read_text()))
        except FileNotFoundError:
            return None

    def write_run_record(self, record: RunRecord) -> None:
        """Record the job's run, whole or not at all."""
        partial = self._run_file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(record), indent=2))
        os.replace(partial, self._run_file)

    @contextlib.contextmanager
    def run_lock(self) -> Iterator[None]:
        """Held while the job's one run is looked up or created, so that two askers never create two."""
        with open(self.folder / "run.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
