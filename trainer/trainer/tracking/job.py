"""One job's folder on disk: the one run it owns, what is still to be delivered, how it ended, its checkpoints."""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from trainer.whole_file import write_whole

JOB_DIR_VARIABLE = "TRAINER_JOB_DIR"


@dataclass(frozen=True)
class RunRecord:
    """The MLflow run that a job has; written when the run is created on the server, or promised."""

    run_id: str
    experiment_id: str
    experiment: str
    name: str
    artifact_uri: str
    start_time: int
    """Milliseconds since the epoch."""
    user_id: str
    server: str = ""
    """URL of the MLflow server that it is on, as the job reached it."""
    promised: bool = False
    """Whether the server was away and still has to make the run: ids and URI are the job's own (promises.py)."""

    @classmethod
    def of(cls, info: Any, experiment: str, server: str = "") -> "RunRecord":
        """The record of the run with this `mlflow.entities.RunInfo`, in the experiment of this name."""
        return cls(
            run_id=info.run_id,
            experiment_id=info.experiment_id,
            experiment=experiment,
            name=info.run_name,
            artifact_uri=info.artifact_uri,
            start_time=info.start_time,
            user_id=info.user_id,
            server=server,
        )


@dataclass(frozen=True)
class EndRecord:
    """How a job ended; written before the server is told, and again once the server knows all of it."""

    status: str
    """FINISHED, FAILED or KILLED."""
    exit_code: int | None
    """None where launch vanished, so that nobody got one."""
    end_time: int
    """Milliseconds since the epoch."""
    tags: dict[str, str]
    """What the run's tags say about its end."""
    delivered: bool = False


class Job:
    """A job's folder. Launch and every worker of the job open the same one.

    Launch has a claim on it for as long as it lives. A folder with a run, no delivered end and no claim belongs to a
    job that lost its launch, by a power loss say, and whoever finds it may claim it and close the run.

    Args:
        folder: `$LAB_DIR/state/<job>/<attempt>`; the attempt's name is the run's name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._claim: IO[bytes] | None = None

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
    def outbox(self) -> Path:
        """Copies of files that the job logged and the server may not have yet (outbox.py)."""
        return self.folder / "outbox"

    @property
    def refused(self) -> Path:
        """Records that the server refused for good."""
        return self.folder / "refused.jsonl"

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

    def write_done(self, rank: int, world_size: int) -> None:
        """Record that a rank came to its end; exit code 0 alone could be an `os._exit` in the middle."""
        (self.folder / "done").mkdir(exist_ok=True)
        (self.folder / "done" / str(rank)).write_text(str(world_size))

    def forget_done(self, rank: int) -> None:
        """For a rank that is started again."""
        (self.folder / "done" / str(rank)).unlink(missing_ok=True)

    def done(self, rank: int) -> bool:
        return (self.folder / "done" / str(rank)).exists()

    def all_done(self) -> bool:
        """Whether every rank came to its end."""
        try:
            world_size = int((self.folder / "done" / "0").read_text())
        except (FileNotFoundError, ValueError):
            return False
        return all(self.done(rank) for rank in range(world_size))

    @property
    def resumes(self) -> int:
        """How often the job went on after it was cut off."""
        return self._count("resumes")

    def write_restart(self) -> int:
        """Record that torchrun has started the workers again; returns how often it has in this job."""
        self._add_to("restarts")
        return self._count("restarts")

    def _add_to(self, name: str) -> None:
        with open(self.folder / name, "a") as file:
            file.write(f"{time.time():.3f}\n")

    def _count(self, name: str) -> int:
        try:
            return len((self.folder / name).read_bytes().splitlines())
        except FileNotFoundError:
            return 0

    def reopen(self) -> None:
        """Forget how the job ended, since it goes on; only for the process that has the claim."""
        self._add_to("resumes")
        for folder in (self.failures, self.logs, self.folder / "done"):
            shutil.rmtree(folder, ignore_errors=True)
        self._end_file.unlink(missing_ok=True)

    @property
    def refused_files(self) -> Path:
        """Files that the server refused for good."""
        return self.folder / "refused"

    @property
    def _arguments_file(self) -> Path:
        return self.folder / "arguments.json"

    def write_arguments(self, arguments: list[str]) -> None:
        """Record what the workers are to do."""
        write_whole(self._arguments_file, json.dumps(arguments))

    def arguments(self) -> list[str]:
        return json.loads(self._arguments_file.read_text())

    def write_sources(self, sources: list[str]) -> None:
        """Record which files the job's configuration is from: another job may have the same name."""
        write_whole(self.folder / "sources.json", json.dumps(sources))

    def sources(self) -> list[str] | None:
        """What `write_sources` has recorded; None in a job of an earlier version of the trainer."""
        try:
            return json.loads((self.folder / "sources.json").read_text())
        except FileNotFoundError:
            return None

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
        write_whole(self._run_file, json.dumps(asdict(record), indent=2))

    @property
    def _asking_file(self) -> Path:
        return self.folder / "asking.json"

    def write_asking(self, experiment_id: str, server: str) -> None:
        """Record that the server is about to be asked for the job's run: whoever asks may die before the answer."""
        write_whole(self._asking_file, json.dumps([experiment_id, server]))

    def asking(self) -> tuple[str, str] | None:
        """The experiment's id and the server that a run was asked of, or None while nobody has asked."""
        try:
            experiment_id, server = json.loads(self._asking_file.read_text())
        except FileNotFoundError:
            return None
        return experiment_id, server

    @contextlib.contextmanager
    def run_lock(self) -> Iterator[None]:
        """Held while the job's one run is looked up or created, so that two askers never create two."""
        with open(self.folder / "run.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @property
    def _end_file(self) -> Path:
        return self.folder / "ending.json"

    def end_record(self) -> EndRecord | None:
        """How the job ended, or None while it runs or where launch vanished."""
        try:
            return EndRecord(**json.loads(self._end_file.read_text()))
        except FileNotFoundError:
            return None

    def write_end_record(self, record: EndRecord) -> None:
        """Record how the job ended, whole or not at all; only for the process that has the claim."""
        write_whole(self._end_file, json.dumps(asdict(record), indent=2))

    @property
    def _claim_file(self) -> Path:
        return self.folder / "launch.lock"

    def claim(self, wait: bool = False) -> bool:
        """Take the job into this process's hands; the kernel takes it back when the process ends, however it ends.

        Args:
            wait: Wait for whoever has it, instead of returning False.
        """
        file = open(self._claim_file, "ab")  # noqa: SIM115 (kept open; no child inherits it)
        for patience in (0.2, 0.2, 0.0):  # somebody who only looks (`is_claimed`) has it for a moment
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(patience)
            else:
                self._claim = file
                return True
        file.close()
        return False

    def release(self) -> None:
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def is_claimed(self) -> bool:
        """Whether some process has the job in its hands now."""
        try:
            with open(self._claim_file, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False
