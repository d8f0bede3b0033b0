"""A failed rank starts all workers again through torchrun, in the same run, from the last checkpoint."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from harness import DIGITS, Lab, until

pytestmark = pytest.mark.fault


def worker(launch: psutil.Process, rank: int) -> psutil.Process:
    """The process of one rank."""
    for process in launch.children(recursive=True):
        if "trainer.worker" in process.cmdline() and process.environ().get("RANK") == str(rank):
            return process
    raise AssertionError(f"no rank {rank}")


def test_a_killed_rank_is_started_again_in_the_same_run(lab: Lab) -> None:
    """Guards: a job that a rank's death ends though restarts are allowed; points that a restart repeats."""
    fit = (*DIGITS, "--trainer.max_epochs", "15", "--devices", "2", "--experiment", "restarts", "--max-restarts", "2")
    launch = lab.start(*fit)
    until(lambda: bool(lab.runs("restarts")) and len(lab.points(lab.only_run("restarts"), "val_loss")) >= 2, 120)
    os.kill(worker(psutil.Process(launch.pid), 1).pid, signal.SIGKILL)
    output, _ = launch.communicate(timeout=200)
    assert launch.returncode == 0, output
    assert "started again (restart 1 of 2)" in output and "going on after epoch" in output
    run = lab.only_run("restarts")
    assert run.info.status == "FINISHED" and run.data.tags["restarts"] == "1" and "failure" not in run.data.tags
    for key in ("train_loss", "val_loss"):
        assert [step for step, _ in lab.points(run, key)] == list(range(15)), key
    assert len(lab.points(run, "test_acc")) == 1


def test_a_mistake_is_not_tried_again(lab: Lab) -> None:
    """Guards: a typo that costs as many starts as restarts are allowed."""
    done = lab.run(*DIGITS, "--experiment", "mistaken", "--max-restarts", "9", "--monitor", "val_los")
    assert done.returncode == 2 and "no such metric is logged" in done.stdout, done.stdout
    assert done.stdout.count("started again") <= 1


def test_restarts_that_are_used_up_fail_the_run(lab: Lab, tmp_path: Path) -> None:
    """Guards: a rank that dies at every start, told of as the first start's or not at all."""
    script = tmp_path / "dies.py"
    script.write_text(
        "import mlflow, os\nmlflow.log_metric('loss', 1)\n"
        "raise ArithmeticError('in start ' + os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
    )
    done = lab.run("run", "--experiment", "used-up", "--max-restarts", "1", str(script))
    assert done.returncode == 1 and done.stdout.count("started again") == 1, done.stdout
    run = lab.only_run("used-up")
    assert run.info.status == "FAILED" and "in start 1" in run.data.tags["failure"]
    assert len(lab.points(run, "loss")) == 1
