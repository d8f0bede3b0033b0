"""How jobs end, seen from launch: what is recorded of it, and who closes the run of a job that lost its launch."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.entities import Metric

from harness import DIGITS, PROJECT, Lab, free_port, left_job, until
from trainer import failure
from trainer.errors import UserError
from trainer.launch import stale
from trainer.tracking import outbox, spool
from trainer.tracking.batches import record_of
from trainer.tracking.job import EndRecord, Job

FAILING = """
from trainer.vision import ImageClassifier


class Failing(ImageClassifier):
    def on_train_epoch_end(self):
        if self.global_rank == 1:
            raise RuntimeError("rank 1 has\\nhad enough")
"""


@pytest.fixture
def own(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab folder of the test's own on the same server: other tests leave stale jobs behind."""
    own = Lab(tmp_path / "own", lab.uri)
    monkeypatch.setenv("LAB_DIR", str(own.folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7"))
    return own


def row(lab: Lab, run_name: str) -> str:
    (line,) = (line for line in lab.run("runs").stdout.splitlines() if line.startswith(f"{run_name} "))
    return line


@pytest.mark.fault
def test_a_job_that_lost_its_launch_is_found_and_closed(own: Lab) -> None:
    """Guards: after a kill -9 or a power loss the run says RUNNING for ever, and what was on disk is lost (tried)."""
    process = own.start(*DIGITS, "--experiment", "lost", "--trainer.max_epochs", "500")
    until(lambda: any("val_loss" in run.data.metrics for run in own.runs("lost")))
    run = own.only_run("lost")
    assert " RUNNING " in row(own, run.info.run_name)
    assert "no stale run" in own.run("runs", "--stale").stdout, "a job that runs is left alone"
    process.kill()
    process.communicate()
    killed = int(time.time() * 1000)
    job = Job(own.folder / "state" / "digits" / run.info.run_name)
    spool.append(job.spool, record_of(run.info.run_id, [Metric("last_words", 1.0, killed, 0)], [], []))
    (job.folder / "written").write_text("late")
    outbox.put(job, run.info.run_id, job.folder / "written", "late.txt")
    time.sleep(2)
    assert " stale " in (line := row(own, run.info.run_name)) and f"{own.uri}/#/" in line and run.info.run_id in line

    away = own.run("runs", "--stale", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")
    (line,) = away.stdout.splitlines()
    assert away.returncode == 2 and line.startswith("trainer: error: no MLflow server answers at "), away.stdout
    assert " stale " in row(own, run.info.run_name)

    closed = own.run("runs", "--stale")
    assert closed.returncode == 0 and len(closed.stdout.splitlines()) == 1, closed.stdout
    assert closed.stdout.startswith(f"trainer: {run.info.run_name}: closed as KILLED")
    run = own.only_run("lost")
    assert run.info.status == "KILLED" and run.data.tags["killed_by"] == stale.LOST
    assert abs(run.info.end_time - killed) < 1000, "the last sign of life, not the time of finding it"
    assert run.data.metrics["last_words"] == 1.0
    assert {"config.yaml", "late.txt"} <= {info.path for info in own.client.list_artifacts(run.info.run_id)}
    assert " KILLED " in row(own, run.info.run_name)
    assert "no stale run" in own.run("runs", "--stale").stdout


@pytest.mark.fault
def test_the_next_start_closes_what_the_last_one_left(own: Lab) -> None:
    """Guards: stale runs that nobody asks for; an unreadable folder of an old job that keeps a new one away (tried)."""
    left = left_job(own, "left")
    other = left_job(own, "other")
    damaged = left_job(own, "left", number=1)
    (damaged.folder / "run.json").write_text("")
    done = own.run(*DIGITS, "--name", "left", "--experiment", "left", "--trainer.fast_dev_run", "true")
    assert done.returncode == 0, done.stdout
    lines = [line for line in done.stdout.splitlines() if left.run_name in line]
    assert len(lines) == 1 and "closed as KILLED" in lines[0]
    assert f"{damaged.folder} is damaged, so a new run starts" in done.stdout
    assert done.stdout.index(lines[0]) < done.stdout.index("loading PyTorch")
    statuses = {run.info.run_name: run.info.status for run in own.runs("left")}
    new = next(name for name in statuses if "-20261101-" not in name)
    assert statuses == {left.run_name: "KILLED", new: "FINISHED", damaged.run_name: "RUNNING"}
    assert own.only_run("other").info.status == "RUNNING", "another job's attempt is left to that job, or to --stale"
    assert " unreadable " in row(own, damaged.run_name)
    end = Job(own.folder / "state" / "left" / new).end_record()
    assert end is not None and (end.status, end.exit_code, end.delivered) == ("FINISHED", 0, True)
    assert own.client.get_run(own.runs("left")[0].info.run_id).info.end_time is not None
    assert other.end_record() is None


def test_a_run_whose_asker_died_before_the_answer_is_found(own: Lab) -> None:
    """Guards: a rank that is killed while it opens the run leaves one RUNNING that nobody knows. (Found so.)"""
    job = left_job(own, "asked")
    record = job.run_record()
    own.client.set_tag(record.run_id, "job", job.run_name)
    job.write_asking(record.experiment_id, own.uri)
    (job.folder / "run.json").unlink()
    assert "closed as KILLED" in own.run("runs", "--stale").stdout
    assert own.only_run("asked").info.status == "KILLED"
    never = left_job(own, "never")
    never.write_asking(never.run_record().experiment_id, own.uri)
    (never.folder / "run.json").unlink()
    assert own.run("runs", "--stale").returncode == 0
    assert "no stale run" in own.run("runs", "--stale").stdout, "what was never made is asked for once"


def test_a_recorded_end_is_told_as_it_was(own: Lab) -> None:
    """Guards: a job that FAILED while the server was away, closed as KILLED a day later, without its reason (tried)."""
    job = left_job(own, "told")
    start = job.run_record().start_time
    failure.write(job.failures, 0, RuntimeError("boom"))
    job.write_end_record(EndRecord("FAILED", 1, start + 5000, {"failure": "rank 0: RuntimeError: boom"}))
    said: list[str] = []
    stale.close_all(said.append)
    assert len(said) == 1 and "closed as FAILED" in said[0]
    run = own.only_run("told")
    assert (run.info.status, run.info.end_time) == ("FAILED", start + 5000)
    assert run.data.tags["failure"] == "rank 0: RuntimeError: boom" and run.data.tags["late"] == "yes"
    assert [info.path for info in own.client.list_artifacts(run.info.run_id, "failures")] == ["failures/rank-0.txt"]


def test_a_status_that_the_server_has_is_kept(own: Lab) -> None:
    """Guards: FINISHED runs of an older trainer, or of a launch that just got so far, made KILLED (tried)."""
    job = left_job(own, "kept")
    own.client.set_terminated(job.run_record().run_id, "FINISHED", job.run_record().start_time + 142)
    stale.close_all(print)
    run = own.only_run("kept")
    assert (run.info.status, run.info.end_time) == ("FINISHED", job.run_record().start_time + 142)
    assert "killed_by" not in run.data.tags and run.data.metrics["loss"] == 0.5


def test_a_status_that_was_set_by_hand_in_mid_training_is_not(own: Lab) -> None:
    """Guards: a quarter of a training that says FINISHED since somebody closed its run before it was killed (tried)."""
    job = left_job(own, "by-hand")
    own.client.set_terminated(job.run_record().run_id, "FINISHED", job.run_record().start_time + 1)
    stale.close_all(print)
    assert own.only_run("by-hand").info.status == "KILLED"


def test_a_run_of_another_server_is_left_alone(own: Lab) -> None:
    """Guards: all that a job left, refused by a server that never heard of it and set aside as delivered (tried)."""
    job = left_job(own, "elsewhere")
    record = job.run_record()
    job.write_run_record(replace(record, run_id="f" * 32, server="http://elsewhere.example.org"))
    said: list[str] = []

    def refused() -> None:
        with pytest.raises(UserError, match="did not take all"):
            stale.close_all(said.append)

    refused()
    assert len(said) == 1 and "MLFLOW_TRACKING_URI=http://elsewhere.example.org trainer sync" in said[0]
    assert job.end_record() is None and not job.refused.exists() and not (job.folder / "spool.offset").exists()
    job.write_run_record(replace(record, run_id="f" * 32))
    refused()
    assert "another one has taken its place, or it was deleted for good" in said[1] and job.end_record() is None
    own.client.delete_run(record.run_id)
    job.write_run_record(record)
    refused()
    assert "can be restored" in said[2] and job.end_record() is None
    stale.close_attempts("elsewhere", own.uri, said.append)
    assert len(said) == 3, "a start of the same job does not repeat it"
    own.client.restore_run(record.run_id)
    stale.close_all(said.append)
    assert "closed as KILLED" in said[3]


@pytest.mark.parametrize(
    ("file", "text"), [("run.json", ""), ("ending.json", "{}"), ("spool.jsonl", '{"run_id": "x", "metrics": [1]}\n')]
)
def test_a_damaged_folder_is_named_and_holds_up_no_other(own: Lab, file: str, text: str) -> None:
    """Guards: "no stale run" beside a run that says RUNNING for ever; a traceback, and all jobs behind it left."""
    damaged, whole = left_job(own, "damaged"), left_job(own, "damaged", number=1)
    with open(damaged.folder / file, "w" if file != "spool.jsonl" else "a") as written:
        written.write(text)
    done = own.run("sync")
    assert "Traceback" not in done.stdout and f"{whole.run_name}: closed as KILLED" in done.stdout, done.stdout
    if file == "spool.jsonl":  # the rest of it is delivered
        assert done.returncode == 0 and f"{damaged.run_name}: closed as KILLED" in done.stdout
        assert damaged.refused.read_text() == text
    else:
        assert done.returncode == 2 and f"{damaged.folder} is damaged" in done.stdout, done.stdout


def test_a_delivery_that_fails_leaves_what_the_user_was_told(own: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: a job that had said 0, and is taken for one that was cut off since a sync broke off. (Found so.)"""
    job = left_job(own, "told-0")
    job.write_end_record(EndRecord("FINISHED", 0, job.run_record().start_time + 1, {}))
    monkeypatch.setattr(stale.Delivery, "close", lambda *_: False)
    assert not stale.close(job, own.uri, print)
    assert job.end_record() == EndRecord("FINISHED", 0, job.run_record().start_time + 1, {})


def test_two_that_close_at_once_do_not_meet(own: Lab) -> None:
    """Guards: two starts that both close a run: each file of it is sent twice and each line said twice (tried)."""
    jobs = [left_job(own, "both", number) for number in range(4)]
    closers = [own.start("runs", "--stale") for _ in range(2)]
    lines = [line for closer in closers for line in closer.communicate(timeout=60)[0].splitlines()]
    assert [closer.returncode for closer in closers] == [0, 0], lines
    closed = [line for line in lines if "closed as KILLED" in line]
    assert sorted(line.split()[1].rstrip(":") for line in closed) == [job.run_name for job in jobs], lines
    said: list[str] = []
    assert stale.close(Job(jobs[0].folder), own.uri, said.append) and not said, "found before the other closed it"
    held = left_job(own, "held")
    assert held.claim()
    assert stale.close(Job(held.folder), own.uri, said.append) and "another process" in said[0]
    assert own.only_run("held").info.status == "RUNNING"


@pytest.mark.fault
def test_fact_E_an_error_in_a_rank_fails_the_run_with_its_traceback(own: Lab, tmp_path: Path) -> None:
    """Guards: a FAILED run that does not say why to anyone but the terminal (tried)."""
    (tmp_path / "failing.py").write_text(FAILING)
    words = ("--devices", "2", "--experiment", "failing", "--model.class_path", "failing.Failing")
    done = own.run(*DIGITS, *words, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stdout
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("trainer: error: "))
    assert "rank 1: RuntimeError: rank 1 has had enough" in line
    run = own.only_run("failing")
    assert run.info.status == "FAILED" and run.data.tags["failure"] == line.removeprefix("trainer: error: ")
    text = Path(own.client.download_artifacts(run.info.run_id, "failures/rank-1.txt", str(tmp_path))).read_text()
    assert "Traceback (most recent call last)" in text and "in on_train_epoch_end" in text
    end = json.loads((own.folder / "state" / "digits" / run.info.run_name / "ending.json").read_text())
    assert end == {
        "status": "FAILED",
        "exit_code": 1,
        "end_time": run.info.end_time,
        "tags": {"failure": run.data.tags["failure"]},
        "delivered": True,
    }


def test_a_rank_without_a_traceback_leaves_the_end_of_its_log(tmp_path: Path) -> None:
    """Guards: nothing to read about a rank that the kernel killed (tried)."""
    failures, logs = tmp_path / "failures", tmp_path / "logs"
    for rank, lines in ((1, 500), (2, 3), (3, 0)):
        folder = logs / "none_x" / "attempt_0" / str(rank)
        folder.mkdir(parents=True)
        (folder / "stderr.log").write_bytes(b"".join(b"line %d \xff\n" % number for number in range(lines)))
    failure.write(failures, 2, RuntimeError("boom"))
    found = failure.reports(failures, logs)
    assert [file.name for file in found] == ["rank-2.txt", "rank-1.log"]
    lines = found[1].read_text().splitlines()
    assert len(lines) == failure.LOG_LINES and lines[-1].startswith("line 499")


def test_runs_imports_nothing_heavy(own: Lab) -> None:
    """Guards: seconds of imports before a table that needs none of them (tried)."""
    left_job(own, "table")
    code = (
        "import sys, runpy; sys.argv = ['trainer', 'runs']\n"
        "try: runpy.run_module('trainer', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'lightning', 'mlflow', 'numpy', 'pynvml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    *table, heavy = done.stdout.splitlines()
    assert heavy == "[]" and len(table) == 2 and " stale " in table[1]


def test_the_claim_ends_with_the_process_that_has_it(tmp_path: Path) -> None:
    """Guards: a job that counts as running after a kill -9 since a child has inherited the lock (tried)."""
    code = (
        "import subprocess, sys, time; from pathlib import Path; from trainer.tracking.job import Job\n"
        "job = Job(Path(sys.argv[1])); job.claim()\n"
        "print(subprocess.Popen(['sleep', '60'], close_fds=False).pid, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        assert Job(tmp_path).is_claimed() and not Job(tmp_path).claim()
        holder.kill()
        holder.wait()
        assert not Job(tmp_path).is_claimed() and Job(tmp_path).claim()
    finally:
        os.kill(child, signal.SIGKILL)
