"""One training under test: the same command, again after each cut-off, until it has ended by itself."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from faults.slow_network import Link
from harness import PROJECT, TRAINER, alive
from trainer.tracking.job import Job

CONFIG = Path(__file__).parent / "project" / "paced.yaml"
AGENT, WORKER = "trainer.launch.agent", "trainer.worker"
START_SECONDS = 240.0
"""What one start may take, with servers away in the middle of it."""
POLL_SECONDS = 0.005


@dataclass
class Training:
    """A job whose processes can be found, and killed.

    Args:
        folder: A new one of its own: the lab is in it, the truth (project/truth.py) and what the command printed.
        uri: URL of the MLflow server.
        experiment: A name of its own.
        devices: How many ranks.
        words: More options of the command.
        link: The network to the server, where `uri` leads over one that can be made slow.
    """

    folder: Path
    uri: str
    experiment: str
    devices: int = 1
    words: tuple[str, ...] = ()
    link: Link | None = None
    exit_codes: list[int] = field(default_factory=list)
    """Of each start of the command."""
    most_starts: int = 6
    launch: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        for folder in (self.folder, self.lab, self.truth):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def lab(self) -> Path:
        return self.folder / "lab"

    @property
    def truth(self) -> Path:
        return self.folder / "truth"

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")

    @property
    def job(self) -> Job | None:
        """The newest attempt that has asked for a run."""
        folders = (
            folder
            for folder in self.lab.glob("state/*/*/")
            if (folder / "asking.json").exists() or (folder / "run.json").exists()
        )
        newest = max(folders, key=lambda folder: folder.name, default=None)
        return None if newest is None else Job(newest)

    @property
    def marks(self) -> list[str]:
        try:
            return (self.truth / "marks").read_text().splitlines()
        except FileNotFoundError:
            return []

    def start(self, *more: str) -> None:
        """The command, as a user types it."""
        words = ("fit", "--config", str(CONFIG), "--devices", str(self.devices), "--experiment", self.experiment)
        with open(self.folder / "output", "ab") as output:
            output.write(f"--- start {len(self.exit_codes) + 1}\n".encode())
            output.flush()
            self.launch = subprocess.Popen(
                [TRAINER, *words, *self.words, *more],
                cwd=PROJECT,
                env={
                    **os.environ,
                    "LAB_DIR": str(self.lab),
                    "MLFLOW_TRACKING_URI": self.uri,
                    "ACCELERATOR": "cpu",
                    "FAULT_TRUTH": str(self.truth),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def ended(self) -> bool:
        return self.launch is None or self.launch.poll() is not None

    def until(self, reached: Callable[["Training"], bool], seconds: float = START_SECONDS) -> bool:
        """Wait for a moment of the training; False where the command has ended before it came."""
        deadline = time.monotonic() + seconds
        while not reached(self):
            if self.ended():
                return False
            assert time.monotonic() < deadline, f"not within {seconds} s\n{self.output[-2000:]}"
            time.sleep(POLL_SECONDS)
        return True

    def wait(self, seconds: float = START_SECONDS) -> int:
        """Wait for the command's end; its exit code."""
        assert self.launch is not None
        try:
            self.exit_codes.append(self.launch.wait(seconds))
        except subprocess.TimeoutExpired:
            self.end_at_once()
            raise AssertionError(f"the command did not end within {seconds} s\n{self.output[-2000:]}") from None
        return self.exit_codes[-1]

    def run_until_it_ends_by_itself(self) -> None:
        """The same command again, as long as it was cut off."""
        while (not self.exit_codes or self.exit_codes[-1] != 0) and len(self.exit_codes) < self.most_starts:
            self.start()
            self.wait()

    def processes(self) -> list[psutil.Process]:
        """All that live and belong to this lab, orphans too."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("LAB_DIR") == str(self.lab):
                    found.append(process)
            except psutil.Error:  # gone meanwhile
                continue
        return alive(found)

    def agent(self) -> psutil.Process:
        return self._only(lambda process: AGENT in process.cmdline())

    def rank(self, number: int) -> psutil.Process:
        return self._only(
            lambda process: process.cmdline()[-1:] == [WORKER] and process.environ().get("RANK") == str(number)
        )

    def _only(self, wanted: Callable[[psutil.Process], bool]) -> psutil.Process:
        assert self.launch is not None
        for process in psutil.Process(self.launch.pid).children(recursive=True):
            try:
                if wanted(process):
                    return process
            except psutil.Error:
                continue
        raise psutil.NoSuchProcess(self.launch.pid, msg="the training has no such process now")

    def end_at_once(self) -> None:
        """Leave nothing behind, whatever went wrong."""
        for process in self.processes():
            process.send_signal(signal.SIGKILL)
        if self.launch is not None:
            self.launch.wait()
