"""Delivery of a job's spool to a real server, through refusals and outages."""

import contextlib
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Metric, Param, RunStatus, RunTag

from harness import PROJECT, TRAINER, Lab, free_port, job_with_run, until
from trainer.tracking import outbox, spool
from trainer.tracking.batches import record_of
from trainer.tracking.delivery import Delivery
from trainer.tracking.job import Job, RunRecord

pytestmark = pytest.mark.usefixtures("own_http_settings")


def points(first: int, last: int) -> list[Metric]:
    return [Metric("loss", float(step), 1_000 + step, step) for step in range(first, last)]


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Lab]:
    """A lab with a server of the test's own, which may be stopped or broken."""
    port = free_port()
    lab = Lab(tmp_path, f"http://127.0.0.1:{port}")
    assert lab.run("server", "--detach", "--port", str(port)).returncode == 0
    yield lab
    lab.run("server", "--stop")


def test_everything_arrives_once_and_in_order(lab: Lab, tmp_path: Path) -> None:
    """Guards: batches over the server's limits (1000 values, 100 params), NaN, a tag's older value."""
    job = job_with_run(lab, tmp_path)
    run_id = job.run_record().run_id
    for start in range(0, 3000, 500):
        spool.append(job.spool, record_of(run_id, points(start, start + 500), [], []))
    spool.append(job.spool, record_of(run_id, [Metric("bad", float("nan"), 1, 0)], [], []))
    for start in range(0, 150, 50):
        params = [Param(f"p{number}", "x") for number in range(start, start + 50)]
        spool.append(job.spool, record_of(run_id, [], params, [RunTag("t", str(start))]))
    delivery = Delivery(job, lab.uri, print)
    delivery.start()
    assert delivery.close(RunStatus.FINISHED, patience=30)
    run = lab.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert lab.points(run, "loss") == [(step, float(step)) for step in range(3000)]
    assert len(run.data.params) == 150 and run.data.tags["t"] == "100"
    assert run.data.metrics["bad"] != run.data.metrics["bad"]


def test_a_refused_record_is_set_aside_and_holds_up_nothing(lab: Lab, tmp_path: Path) -> None:
    """Guards: the server answers 400 to the whole batch when one param changes, and all behind it waits forever."""
    job = job_with_run(lab, tmp_path)
    run_id = job.run_record().run_id
    spool.append(job.spool, record_of(run_id, points(0, 2), [Param("lr", "1"), Param("kept", "1")], []))
    spool.append(job.spool, record_of(run_id, points(2, 3), [Param("lr", "2"), Param("also", "1")], []))
    with open(job.spool, "ab") as file:
        file.write(b"no record at all\n")
    spool.append(job.spool, record_of(run_id, points(3, 4), [], []))
    said: list[str] = []
    assert Delivery(job, lab.uri, said.append).close(RunStatus.FINISHED, patience=30)
    run = lab.client.get_run(run_id)
    assert [step for step, _ in lab.points(run, "loss")] == [0, 1, 2, 3]
    assert run.data.params == {"lr": "1", "kept": "1", "also": "1"}
    refused = (tmp_path / "refused.jsonl").read_text()
    assert '"lr"' in refused and "no record at all" in refused
    assert len(said) == 2 and all(str(tmp_path) in line for line in said)


def test_what_can_be_no_metric_holds_up_nothing(lab: Lab, tmp_path: Path) -> None:
    """Guards: a step beyond 64 bits, at which MLflow's client raises and delivery ends for good (tried)."""
    job = job_with_run(lab, tmp_path)
    run_id = job.run_record().run_id
    spool.append(job.spool, record_of(run_id, [*points(0, 1), Metric("loss", 1.0, 1, 2**70)], [], []))
    spool.append(job.spool, record_of(run_id, points(1, 2), [], []))
    assert Delivery(job, lab.uri, print).close(RunStatus.FINISHED, patience=30)
    assert [step for step, _ in lab.points(lab.client.get_run(run_id), "loss")] == [0, 1]
    assert str(2**70) in job.refused.read_text()


def test_a_run_that_is_deleted_in_mid_training_may_be_restored(lab: Lab, tmp_path: Path) -> None:
    """Guards: a line for each value of the rest of the job; values that are gone when the run is there again; a rest
    that is delivered as a file to a run that is not there. (All tried.)"""
    job = job_with_run(lab, tmp_path)
    run_id = job.run_record().run_id
    said: list[str] = []
    delivery = Delivery(job, lab.uri, said.append)
    delivery.start()
    spool.append(job.spool, record_of(run_id, points(0, 1), [], []))
    until(lambda: "loss" in delivery.latest)
    lab.client.delete_run(run_id)
    for step in range(1, 50):
        spool.append(job.spool, record_of(run_id, points(step, step + 1), [], []))
    (tmp_path / "note.txt").write_text("note")
    outbox.put(job, run_id, tmp_path / "note.txt", "note.txt")
    until(lambda: bool(said))
    began = time.monotonic()
    assert not delivery.close(RunStatus.FINISHED, patience=30)
    assert time.monotonic() - began < 10, "nobody restores it in the minutes after"
    assert len(said) == 1 and "deleted" in said[0] and not job.refused.exists(), said
    lab.client.restore_run(run_id)
    assert Delivery(job, lab.uri, said.append).close(RunStatus.FINISHED, patience=30)
    run = lab.client.get_run(run_id)
    assert run.info.status == "FINISHED" and [step for step, _ in lab.points(run, "loss")] == list(range(50))
    assert [file.path for file in lab.client.list_artifacts(run_id)] == ["note.txt"]


@pytest.mark.fault
def test_another_server_in_the_place_of_the_right_one_gets_nothing(lab: Lab, tmp_path: Path) -> None:
    """Guards: points set aside and files sent away for good since another checkout's server has the port (tried)."""
    port = free_port()
    right, wrong = (Lab(tmp_path / name, f"http://127.0.0.1:{port}") for name in ("right", "wrong"))

    def up(lab: Lab) -> None:
        assert lab.run("server", "--detach", "--port", str(port)).returncode == 0

    up(right)
    try:
        job = job_with_run(right, tmp_path)
        run_id = job.run_record().run_id
        right.run("server", "--stop")
        up(wrong)
        said: list[str] = []
        delivery = Delivery(job, right.uri, said.append)
        spool.append(job.spool, record_of(run_id, points(0, 5), [], []))
        (tmp_path / "note.txt").write_text("note")
        outbox.put(job, run_id, tmp_path / "note.txt", "note.txt")
        assert not delivery.close(RunStatus.FINISHED, patience=4)
        assert any("does not know the run" in line for line in said) and not job.refused.exists(), said
        wrong.run("server", "--stop")
        up(right)
        assert Delivery(job, right.uri, said.append).close(RunStatus.FINISHED, patience=30)
        assert [step for step, _ in right.points(right.client.get_run(run_id), "loss")] == list(range(5))
        assert [file.path for file in right.client.list_artifacts(run_id)] == ["note.txt"]
        assert not list((wrong.folder / "mlflow" / "artifacts").rglob("note.txt"))
    finally:
        for lab in (right, wrong):
            lab.run("server", "--stop")


@pytest.mark.fault
def test_a_database_that_takes_no_writes_is_waited_for(
    own_server: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards: what MLflow passes on as BAD_REQUEST, such as a database in a failover, taken for a verdict (tried); a
    probe that writes nothing, or to another table. (Found so.)"""
    monkeypatch.setattr("trainer.tracking.delivery.INTERVAL_SECONDS", 0.1)
    lab = own_server
    job = job_with_run(lab, tmp_path)
    run_id = job.run_record().run_id
    (database,) = (lab.folder / "mlflow").glob("*.db")

    def in_database(statement: str) -> None:
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            connection.execute(statement)

    lab.client.set_tag(run_id, "job", job.run_name)
    for table in ("metrics", "tags"):
        in_database(f"create trigger no_{table} before insert on {table} begin select raise(abort, 'closed'); end")
    spool.append(job.spool, record_of(run_id, points(0, 5), [], []))
    said: list[str] = []
    assert not Delivery(job, lab.uri, said.append).close(RunStatus.FINISHED, patience=5)
    assert not job.refused.exists() and "answers with an error" in said[0], said
    in_database("drop trigger no_tags")
    assert not Delivery(job, lab.uri, said.append).close(RunStatus.FINISHED, patience=5)
    in_database("drop trigger no_metrics")
    assert Delivery(job, lab.uri, said.append).close(RunStatus.FINISHED, patience=30)
    assert [step for step, _ in lab.points(lab.client.get_run(run_id), "loss")] == list(range(5))
    in_database("create trigger no_more before insert on metrics begin select raise(abort, 'closed'); end")
    spool.append(job.spool, record_of(run_id, points(5, 6), [], []))
    assert not Delivery(job, lab.uri, said.append).close(RunStatus.FINISHED, patience=5)
    assert not job.refused.exists(), "it takes tags, but no metric at all"
    in_database("drop trigger no_more")

    in_database(
        "create trigger no_seven before insert on metrics when new.step = 7 begin select raise(abort, 'no'); end"
    )
    spool.append(job.spool, record_of(run_id, points(6, 10), [], []))
    assert Delivery(job, lab.uri, said.append).close(RunStatus.FINISHED, patience=60)
    steps = [step for step, _ in lab.points(lab.client.get_run(run_id), "loss")]
    assert steps == [0, 1, 2, 3, 4, 5, 6, 8, 9], "the one that it fails at holds up nothing"
    assert '"step": 7' in job.refused.read_text()
    assert "delivery.probe" not in lab.client.get_run(run_id).data.tags


def test_the_end_is_the_jobs_and_no_model_is_left_pending(lab: Lab, tmp_path: Path) -> None:
    """Guards: a run that ended when it was delivered; a logged model of a killed job PENDING for ever (tried)."""
    job = job_with_run(lab, tmp_path)
    record = job.run_record()
    pending = lab.client.create_logged_model(record.experiment_id, "half", source_run_id=record.run_id)
    ready = lab.client.create_logged_model(record.experiment_id, "whole", source_run_id=record.run_id)
    lab.client.finalize_logged_model(ready.model_id, "READY")
    of_another = lab.client.create_logged_model(record.experiment_id, "half")
    end = record.start_time + 1234
    assert Delivery(job, lab.uri, print).close(RunStatus.KILLED, patience=30, end_time=end)
    info = lab.client.get_run(record.run_id).info
    assert (info.status, info.end_time) == ("KILLED", end)
    statuses = [str(lab.client.get_logged_model(model.model_id).status) for model in (pending, ready, of_another)]
    assert statuses == ["FAILED", "READY", "PENDING"]


@pytest.mark.fault
def test_an_outage_delays_and_loses_nothing(own_server: Lab, tmp_path: Path) -> None:
    """Guards: delivery that stops for good, drops a batch, a file or the order when the server is away for a while."""
    lab = own_server
    job = job_with_run(lab, tmp_path)
    run_id = job.run_record().run_id
    said: list[str] = []
    delivery = Delivery(job, lab.uri, said.append)
    delivery.start()
    spool.append(job.spool, record_of(run_id, points(0, 5), [], []))
    until(lambda: "loss" in delivery.latest)
    lab.run("server", "--stop")
    spool.append(job.spool, record_of(run_id, points(5, 10), [], []))
    for text in ("first", "second"):
        (tmp_path / "note.txt").write_text(text)
        outbox.put(job, run_id, tmp_path / "note.txt", "notes/note.txt")
    until(lambda: any("does not answer" in line for line in said))
    subprocess.run(
        [TRAINER, "server", "--detach", "--port", lab.uri.rpartition(":")[2]],
        cwd=PROJECT,
        env=lab.environment,
        check=True,
    )
    assert delivery.close(RunStatus.FINISHED, patience=60)
    assert any("is back" in line for line in said) and len(said) == 2
    assert [step for step, _ in lab.points(lab.client.get_run(run_id), "loss")] == list(range(10))
    note = lab.client.download_artifacts(run_id, "notes/note.txt", str(tmp_path))
    assert Path(note).read_text() == "second"


def test_a_server_that_stays_away_is_said_and_the_spool_kept(tmp_path: Path) -> None:
    """Guards: a job that claims FINISHED, or hangs, when its server never comes back."""
    job = Job(tmp_path)
    job.write_run_record(RunRecord("0" * 32, "0", "x", "x", "mlflow-artifacts:/", 0, ""))
    spool.append(job.spool, record_of("0" * 32, points(0, 5), [], []))
    start = time.monotonic()
    assert not Delivery(job, f"http://127.0.0.1:{free_port()}", print).close(RunStatus.FINISHED, patience=2)
    assert time.monotonic() - start < 30
    assert job.spool.stat().st_size > 0 and not (tmp_path / "spool.offset").exists()
