"""How a job ends when one of its ranks does: soon, with the truth, and with nothing left behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import Lab

pytestmark = pytest.mark.fault

# Rank 1 fails in mid-epoch; rank 0 is in a step that it will not leave by itself, and then in a collective.
ONE_RANK_FAILS = """
import os, time
import torch
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

class Fails(BoringModel):
    def training_step(self, batch, batch_idx):
        if batch_idx == 3 and self.global_rank == 1:
            print("failing now", flush=True)
            open(os.environ["FAILED_AT"], "w").write(str(time.time()))
            raise ZeroDivisionError("of rank 1")
        if batch_idx == 3 and self.global_rank == 0:
            torch.distributed.barrier()
            time.sleep(600)
        return super().training_step(batch, batch_idx)

Trainer(max_epochs=1, enable_progress_bar=False).fit(Fails())
"""

# Its handler for SIGTERM never comes back, as Lightning's when it waits for a rank that is dead.
NEVER_LEAVES = """
import signal, time
from trainer.process import end_soon_after_sigterm

def handler(*_):
    while True:
        time.sleep(60)

signal.signal(signal.SIGTERM, handler)
end_soon_after_sigterm(1.0)
print("ready", flush=True)
while True:
    time.sleep(60)
"""

# A DataLoader worker is forked, inherits the handlers, and is told to end by its parent.
FORKS = """
import os, signal, time
from trainer.process import end_soon_after_sigterm

signal.signal(signal.SIGTERM, lambda *_: None)
end_soon_after_sigterm(0.5)
child = os.fork()
if child == 0:
    time.sleep(2)
    os._exit(0)
time.sleep(0.5)
os.kill(child, signal.SIGTERM)
os.waitpid(child, 0)
time.sleep(1)
print("still here")
"""


def test_F_an_exception_in_one_rank_ends_the_job(lab: Lab, tmp_path: Path) -> None:
    """Guards: the other rank waits for the failed one in a collective, for half an hour, and the run says RUNNING."""
    script, failed_at = tmp_path / "one_rank_fails.py", tmp_path / "failed_at"
    script.write_text(ONE_RANK_FAILS)
    done = lab.run("run", "--devices", "2", str(script), FAILED_AT=str(failed_at))
    ended = time.time()
    assert done.returncode == 1, done.stdout
    assert "trainer: error: rank 1: ZeroDivisionError: of rank 1" in done.stdout
    assert ended - float(failed_at.read_text()) < 30
    run = lab.only_run("one_rank_fails")
    assert run.info.status == "FAILED"
    traceback = lab.client.download_artifacts(run.info.run_id, "failures/rank-1.txt", str(tmp_path))
    assert "in training_step" in Path(traceback).read_text(), "the failing rank's traceback is an artifact"


def test_F_a_rank_that_is_stuck_ends_soon_after_sigterm() -> None:
    """Guards: torchrun waits 30 s for a rank whose SIGTERM handler hangs, before it kills it (Lightning 2.6.6).

    Without `end_soon_after_sigterm` it never ends (tried).
    """
    process = subprocess.Popen([sys.executable, "-c", NEVER_LEAVES], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 128 + signal.SIGTERM
    finally:
        process.kill()


def test_a_dataloader_workers_end_is_not_the_ranks() -> None:
    """Guards: a forked child writes its signals into the pipe that its parent watches.

    Without `register_at_fork` the process ends with 143 (tried).
    """
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "still here\n"), done.stderr
