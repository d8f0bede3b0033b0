"""A tracking server that is away: at the start, in the middle, at the end; nothing waits for it, nothing is lost."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import LoggedModelStatus

from harness import DIGITS, Lab, free_port, until
from trainer.tracking.job import Job

pytestmark = pytest.mark.fault

EPOCHS = 8
FIT = (*DIGITS, "--trainer.max_epochs", str(EPOCHS))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Lab]:
    """A lab whose server is not running yet."""
    lab = Lab(tmp_path / "lab", f"http://127.0.0.1:{free_port()}")
    yield lab
    lab.run("server", "--stop")


def up(lab: Lab) -> None:
    started = lab.run("server", "--detach", "--port", lab.uri.rpartition(":")[2])
    assert started.returncode == 0, started.stdout


def only_job(lab: Lab) -> Job:
    (folder,) = (lab.folder / "state" / "digits").iterdir()
    return Job(folder)


def assert_all_is_there(lab: Lab, experiment: str) -> None:
    run = lab.only_run(experiment)
    assert run.info.status == "FINISHED"
    for key in ("train_loss", "val_loss", "val_acc"):
        assert [step for step, _ in lab.points(run, key)] == list(range(EPOCHS)), key
    assert len(lab.points(run, "test_acc")) == 1 and "model.init_args.lr" in run.data.params
    assert {"config.yaml", "model_summary.txt"} <= {file.path for file in lab.client.list_artifacts(run.info.run_id)}
    (model,) = lab.client.search_logged_models([run.info.experiment_id])
    assert model.status == LoggedModelStatus.READY and model.source_run_id == run.info.run_id
    mlflow.set_tracking_uri(lab.uri)
    assert mlflow.pytorch.load_model(model.model_uri, map_location="cpu") is not None
    described = mlflow.models.get_model_info(model.model_uri)
    assert described.model_id == model.model_id and described.run_id == run.info.run_id, "under the real names"
    job = only_job(lab)
    assert not job.refused.exists() and not job.outbox.exists() and job.end_record().delivered


def test_a_job_without_a_server_is_delivered_by_sync(own: Lab) -> None:
    """Guards: a job that cannot start or end without its server; a run, a model or a status that never gets there."""
    began = time.monotonic()
    refused = own.run(*FIT)
    assert time.monotonic() - began < 30
    assert refused.returncode == 2 and "no MLflow server answers" in refused.stdout and "--offline" in refused.stdout
    done = own.run(*FIT, "--experiment", "offline", "--offline")
    assert done.returncode == 0 and "trainer sync" in done.stdout and "FINISHED" in done.stdout, done.stdout
    assert only_job(own).run_record().promised
    up(own)
    synced = own.run("sync")
    assert synced.returncode == 0 and "closed as FINISHED" in synced.stdout, synced.stdout
    assert_all_is_there(own, "offline")
    assert own.run("sync").stdout.count("no stale run") == 1


def test_each_command_without_a_server_trains(own: Lab) -> None:
    """Guards: a second experiment that is dropped, with exit code 0 or 1, since the first is still to be delivered; a
    drift of a job that never went on. (Found so.)"""
    for lr in ("0.1", "0.2"):
        words = ("--trainer.max_epochs", "1", "--experiment", "several", "--model.init_args.lr", lr)
        done = own.run(*DIGITS, *words, "--offline")
        assert done.returncode == 0 and "FINISHED" in done.stdout, done.stdout
    table = own.run("runs").stdout
    assert table.count("FINISHED, undelivered") == 2 and table.count("not on the server yet") == 2, table
    up(own)
    done = own.run(*DIGITS, "--trainer.max_epochs", "1", "--experiment", "several", "--model.init_args.lr", "0.2")
    assert done.returncode == 0 and done.stdout.count("closed as FINISHED") == 2, done.stdout
    runs = own.runs("several")
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert sorted(run.data.params["model.init_args.lr"] for run in runs) == ["0.1", "0.2", "0.2"]
    assert not [tag for run in runs for tag in run.data.tags if tag.startswith("drift.")]


def test_a_server_that_goes_and_comes_back_gets_all_of_it(own: Lab) -> None:
    """Guards: a training that waits; points, the model or the status lost; an outage that nobody can see afterwards."""
    up(own)
    launch = own.start(*FIT, "--experiment", "outage")
    until(lambda: bool(own.runs("outage")) and len(own.points(own.only_run("outage"), "val_loss")) >= 1, 120)
    own.run("server", "--stop")
    until(lambda: only_job(own).done(0), 120)
    assert launch.poll() is None, "only its delivery is left"
    up(own)
    output, _ = launch.communicate(timeout=120)
    assert launch.returncode == 0, output
    assert_all_is_there(own, "outage")
    run = own.only_run("outage")
    ((step, seconds),) = own.points(run, "outage_seconds")
    assert step == 0 and seconds > 1


def test_an_end_that_was_none_is_taken_back_behind_the_outage(own: Lab) -> None:
    """Guards: a FINISHED run with the tag `killed_by`, which waited on disk while the job went on."""
    launch = own.start(*FIT, "--experiment", "ended-away", "--offline")
    until(lambda: bool(list(own.folder.glob("state/digits/*/checkpoints/last.ckpt"))), 120)
    launch.send_signal(signal.SIGTERM)
    launch.communicate(timeout=120)
    assert only_job(own).end_record().status == "KILLED" and only_job(own).run_record().promised
    up(own)
    done = own.run(*FIT, "--experiment", "ended-away")
    assert done.returncode == 0 and "going on with" in done.stdout, done.stdout
    assert_all_is_there(own, "ended-away")
    assert "killed_by" not in own.only_run("ended-away").data.tags
