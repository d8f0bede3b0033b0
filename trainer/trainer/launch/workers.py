"""Starts the workers of this node through torchrun's agent, forwards signals to them, and says how they ended."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from types import FrameType

from trainer import failure
from trainer.launch.devices import Devices
from trainer.tracking.job import JOB_DIR_VARIABLE, Job

GRACE_SECONDS = 8.0
"""From the first signal to SIGKILL. Each worker sees to its own end within 5 s (worker.py); what it wrote is on disk,
and the last checkpoint is of the last epoch, not of the signal."""


# Else the workers that are started again find in the agent's store where the dead ones listened (PyTorch #135712).
A_STORE_FOR_EACH_START = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What asks a job to end: `docker stop`, Ctrl-C, a closed terminal, Ctrl-\\."""


@dataclass(frozen=True)
class Ending:
    """How a job's workers ended."""

    killed_by: signal.Signals | None = None
    """The signal that launch itself got, or None."""
    error: str | None = None
    """One line, where a worker failed."""
    user_error: bool = False

    @property
    def exit_code(self) -> int:
        if self.killed_by is not None:
            return 128 + self.killed_by
        return 0 if self.error is None else 2 if self.user_error else 1


class Workers:
    """The workers of one job on this node.

    Args:
        job: Whose folder the workers share with launch.
        arguments: What the workers do, `["fit", …]`; read by each from the job's folder.
        devices: One worker is started on each.
        environment: Added to this process's own.
        max_restarts: How often torchrun starts all of them again when one has failed.
    """

    def __init__(
        self, job: Job, arguments: list[str], devices: Devices, environment: dict[str, str], max_restarts: int = 0
    ) -> None:
        self._job = job
        self._reported: dict[int, int] | None = None
        self.killed_by: signal.Signals | None = None
        """The signal that ends the job, once launch has got one."""
        self.signals = 0
        """How many signals launch has got."""
        self._deadline: float | None = None
        self._world_size = devices.count
        self._max_restarts = max_restarts
        # Local rank 0 has the terminal, so that a progress bar is live; the others print into files.
        quiet_ranks = ",".join(f"{rank}:3" for rank in range(1, devices.count)) or "0:0"
        torchrun = [
            "--standalone",
            f"--nproc-per-node={devices.count}",
            f"--max-restarts={max_restarts}",
            f"--redirects={quiet_ranks}",
            f"--log-dir={job.logs}",
            "--module",
            "trainer.worker",
        ]
        # Not on torchrun's command line: it takes `--monitor` there for an abbreviation of its own.
        job.write_arguments(arguments)
        # A session of its own: a Ctrl-C in the terminal reaches launch alone, which passes it on once.
        # The exit codes of failed ranks come back through a pipe, which a full disk cannot keep out.
        reader, report = os.pipe()
        self._report = open(reader)  # noqa: SIM115 (read when the agent has ended)
        self._agent = subprocess.Popen(
            [sys.executable, "-m", "trainer.launch.agent", str(os.getpid()), str(report), *torchrun],
            env={
                **os.environ,
                **environment,
                **(A_STORE_FOR_EACH_START if max_restarts else {}),
                JOB_DIR_VARIABLE: str(job.folder),
            },
            stdin=subprocess.DEVNULL,
            pass_fds=(report,),
            start_new_session=True,
        )
        os.close(report)

    def forward_signals(self) -> None:
        """From here on a signal that asks for the end ends the workers; a second one ends them at once."""
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores SIGHUP, and so do we then
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1
        if self.killed_by is None:
            self.killed_by = signal.Signals(number)
            self._deadline = time.monotonic() + GRACE_SECONDS
            self._agent.send_signal(signal.SIGTERM)
        else:
            self._deadline = time.monotonic()

    def running(self) -> bool:
        """Whether any is; past the grace period after a signal, all are killed."""
        if self._agent.poll() is not None:
            return False
        if self._deadline is None and self._max_restarts and self._mistaken():
            self._deadline = time.monotonic() + GRACE_SECONDS
            self._agent.send_signal(signal.SIGTERM)
        if self._deadline is not None and time.monotonic() > self._deadline:
            # The workers ask the kernel to die with the agent (process.py).
            self._agent.kill()
        return True

    def _mistaken(self) -> bool:
        """Whether a rank has ended by a user's mistake, which no restart puts right."""
        cause = failure.first(self._job.failures)
        return cause is not None and cause.user_error

    def ending(self) -> Ending:
        """How they ended; only after `running()` has said False."""
        code = self._agent.wait()
        left = [rank for rank in range(self._world_size) if not self._job.done(rank)]
        if code == 0 and not left:  # also where a signal came in the moment after
            return Ending()
        if self.killed_by is not None:
            return Ending(killed_by=self.killed_by)
        if code == 0:
            return Ending(error=f"rank {left[0]} left in the middle, with exit code 0 (os._exit, or a library's exit)")
        exit_codes = self._exit_codes()
        # The other ranks' errors only follow from it. Not so of SIGABRT: so gloo and NCCL end ranks that another left.
        ended_from_outside = {rank: code for rank, code in exit_codes.items() if code != -signal.SIGABRT}
        if died := _died_of_a_signal(ended_from_outside):
            return Ending(error=died)
        if cause := failure.first(self._job.failures):
            where = "" if cause.user_error else f"rank {cause.rank}: "
            return Ending(error=where + cause.line, user_error=cause.user_error)
        if died := _died_of_a_signal(exit_codes):
            return Ending(error=died)
        if exit_codes:
            rank = min(exit_codes)
            return Ending(error=f"rank {rank} ended with exit code {exit_codes[rank]}")
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return Ending(error=f"the torchrun agent {how}")

    def _exit_codes(self) -> dict[int, int]:
        """Exit codes of the ranks that failed, without those that the agent ended with SIGTERM because of it."""
        if self._reported is None:
            text = self._report.read()
            self._reported = {int(rank): code for rank, code in json.loads(text or "{}").items()}
        told_to_end = (-signal.SIGTERM, 128 + signal.SIGTERM)  # the latter by process.py
        return {rank: code for rank, code in self._reported.items() if code not in told_to_end} or self._reported

    def kill(self) -> None:
        """End all at once, whatever they do."""
        self._agent.kill()
        self._agent.wait()


def _died_of_a_signal(exit_codes: dict[int, int]) -> str | None:
    for rank, code in sorted(exit_codes.items()):
        if code < 0:
            hint = "; SIGKILL often means out of memory (see `dmesg`)" if code == -signal.SIGKILL else ""
            return f"rank {rank} was ended by {signal.Signals(-code).name}{hint}"
    return None
