"""How a job ends when one of its ranks does: soon, with the truth, and with nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow.entities import RunStatus

from harness import DIGITS, PROJECT, TRAINER, Lab, alive, job_with_run, until
from trainer import failure
from trainer.launch.launcher import impatience
from trainer.launch.workers import Workers
from trainer.tracking.job import Job
from trainer.tracking.store import JobStore

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

FILLS = """
import mlflow, os
mlflow.log_metric("before", 1)
with open(os.path.join(os.environ["LAB_DIR"], "fill"), "wb", buffering=0) as file:
    try:
        while file.write(bytes(2**12)):
            pass
    except OSError:
        pass
raise RuntimeError("after the disk was full")
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


def test_fact_F_an_exception_in_one_rank_ends_the_job(lab: Lab, tmp_path: Path) -> None:
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


def test_fact_F_a_rank_that_is_stuck_ends_soon_after_sigterm() -> None:
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


def test_fact_E_a_rank_cannot_set_the_status(lab: Lab, tmp_path: Path) -> None:
    """Guards: autologging's atexit says FINISHED on the server, until launch says otherwise. (Tried.)"""
    job = job_with_run(lab, tmp_path)
    run_id = job.run_record().run_id
    for status in (RunStatus.FINISHED, RunStatus.FAILED):
        JobStore(lab.uri, job).update_run_info(run_id, status, 1, None)
        assert lab.client.get_run(run_id).info.status == "RUNNING"


@pytest.mark.parametrize(
    ("exit_codes", "failed", "says"),
    [
        ({0: -signal.SIGABRT, 1: 1}, 1, "rank 1: of rank 1"),  # NCCL's watchdog and gloo abort those that are left
        ({0: -signal.SIGABRT, 1: -signal.SIGKILL}, None, "rank 1 was ended by SIGKILL"),
        ({0: 143, 1: 3}, None, "rank 1 ended with exit code 3"),
        ({0: -signal.SIGTERM, 1: 1}, 1, "rank 1: of rank 1"),
        ({0: -signal.SIGSEGV}, None, "rank 0 was ended by SIGSEGV"),
    ],
)
def test_fact_F_the_rank_that_is_named_is_the_cause(
    tmp_path: Path, exit_codes: dict[int, int], failed: int | None, says: str
) -> None:
    """Guards: a rank that only followed another into its end, named as the cause."""
    code = "import json, os, sys; json.dump(json.loads(sys.argv[2]), open(int(sys.argv[1]), 'w')); sys.exit(1)"

    class Ended(Workers):
        def __init__(self) -> None:
            self._job, self.killed_by, self._world_size, self._reported = Job(tmp_path), None, 2, None
            reader, report = os.pipe()
            words = [sys.executable, "-c", code, str(report), json.dumps(exit_codes)]
            self._agent, self._report = subprocess.Popen(words, pass_fds=(report,)), os.fdopen(reader)
            os.close(report)

    if failed is not None:
        failure.note(tmp_path / "failures", failed, f"of rank {failed}")
    assert Ended().ending().error.startswith(says)


def test_a_signal_to_a_job_that_has_ended_by_itself_changes_nothing() -> None:
    """Guards: `docker stop` during the last delivery, which leaves a finished run as RUNNING. (It was found so.)"""

    class Signalled:
        signals, killed_by = 0, None

    workers = Signalled()
    give_up = impatience(workers)  # type: ignore[arg-type]
    workers.signals = 1
    assert not give_up()
    workers.signals = 2
    assert give_up(), "once more means it"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk_costs_no_truth(lab: Lab, tmp_path: Path) -> None:
    """Guards: a run that stays RUNNING on a healthy server, after 300 s of waiting, since the job's folder is full.

    With a place in the spool that must be written before the delivery goes on, it was so (tried).
    """
    disk, script = tmp_path / "disk", tmp_path / "fills.py"
    disk.mkdir()
    script.write_text(FILLS)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "fills", disk], check=True)
    try:
        start = time.monotonic()
        done = lab.run("run", str(script), LAB_DIR=str(disk))
        assert time.monotonic() - start < 100
    finally:
        subprocess.run(["umount", disk], check=True)
    assert done.returncode == 1 and "rank 0: RuntimeError: after the disk was full" in done.stdout, done.stdout
    run = lab.only_run("fills")
    assert run.info.status == "FAILED" and run.data.metrics["before"] == 1.0


def test_a_dataloader_workers_end_is_not_the_ranks() -> None:
    """Guards: a forked child writes its signals into the pipe that its parent watches.

    Without `register_at_fork` the process ends with 143 (tried).
    """
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "still here\n"), done.stderr


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_fact_E_a_signal_makes_the_run_killed(lab: Lab, sent: signal.Signals, code: int) -> None:
    """Guards: autolog's atexit says FINISHED for a job that was killed, with exit code 0."""
    experiment = f"signal-{sent.name}"
    process = lab.start(*DIGITS, "--devices", "2", "--experiment", experiment, "--trainer.max_epochs", "500")
    until(lambda: any("val_loss" in run.data.metrics for run in lab.runs(experiment)))
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(sent)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    run = lab.only_run(experiment)
    assert run.info.status == "KILLED" and run.data.tags["killed_by"] == sent.name and "KILLED" in output
    assert not alive(workers), "a worker lives on"


def test_a_rank_that_is_told_to_end_fails_the_job(lab: Lab) -> None:
    """Guards: Lightning leaves a training that got SIGTERM with exit code 0, and the run says FINISHED."""
    process = lab.start(*DIGITS, "--experiment", "rank-told", "--trainer.max_epochs", "500")
    until(lambda: any("val_loss" in run.data.metrics for run in lab.runs("rank-told")))
    everyone = psutil.Process(process.pid).children(recursive=True)
    (rank,) = (one for one in everyone if one.cmdline()[-1] == "trainer.worker" and one.environ().get("RANK") == "0")
    rank.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "SIGTERM" in output, output
    assert lab.only_run("rank-told").info.status == "FAILED"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_fact_F_a_killed_rank_fails_the_job(lab: Lab, rank: str) -> None:
    """Guards: a rank's death takes the truth with it, or the other rank waits for it for half an hour."""
    experiment = f"rank-{rank}-killed"
    process = lab.start(*DIGITS, "--devices", "2", "--experiment", experiment, "--trainer.max_epochs", "500")
    until(lambda: any("val_loss" in run.data.metrics for run in lab.runs(experiment)))
    everyone = psutil.Process(process.pid).children(recursive=True)
    (victim,) = (one for one in everyone if one.cmdline()[-1] == "trainer.worker" and one.environ().get("RANK") == rank)
    victim.kill()
    killed = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode == 1 and f"rank {rank} was ended by SIGKILL" in output, output
    run = lab.only_run(experiment)
    assert run.info.status == "FAILED" and f"rank {rank}" in run.data.tags["failure"]
    assert not alive(everyone), "a process lives on"


def test_workers_die_with_launch(lab: Lab) -> None:
    """Guards: kill -9 of the parent leaves ranks that train on as orphans, unseen, to the end."""
    process = lab.start(*DIGITS, "--devices", "2", "--experiment", "orphans", "--trainer.max_epochs", "500")
    until(lambda: any("val_loss" in run.data.metrics for run in lab.runs("orphans")))
    everyone = psutil.Process(process.pid).children(recursive=True)
    assert len(everyone) >= 3
    process.kill()
    process.communicate()
    until(lambda: not alive(everyone), seconds=15)


def test_a_reader_that_is_gone_does_not_end_a_training(lab: Lab) -> None:
    """Guards: FAILED with `BrokenPipeError`, or EIO, since a terminal was closed or a `tee` has died. (Found so.)"""
    closed = f"{TRAINER} {' '.join(DIGITS)} --experiment closed --trainer.fast_dev_run true >&- 2>&-"
    assert subprocess.run(["sh", "-c", closed], cwd=PROJECT, env=lab.environment).returncode == 0
    process = lab.start(*DIGITS, "--experiment", "unread", "--trainer.max_epochs", "4")
    until(lambda: bool(lab.runs("unread")) and "val_loss" in lab.only_run("unread").data.metrics)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(120) == 0
    run = lab.only_run("unread")
    assert run.info.status == "FINISHED" and len(lab.points(run, "val_loss")) == 4 and "test_acc" in run.data.metrics
