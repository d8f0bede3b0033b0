"""The same command goes on with a job that was cut off: in the same run, each point once."""

import signal
from pathlib import Path

import pytest
from mlflow.entities import Metric, Param, RunTag

from harness import DIGITS, Lab, until
from trainer.tracking import spool
from trainer.tracking.batches import record_of
from trainer.tracking.history import History
from trainer.tracking.job import Job
from trainer.tracking.promises import Promises

FIT = (*DIGITS, "--trainer.max_epochs", "5")


def cut_off(lab: Lab, experiment: str, how: signal.Signals, epochs: int = 2, *words: str) -> None:
    """Train for some epochs, then end launch by a signal."""
    launch = lab.start(*FIT, "--experiment", experiment, *words)
    until(lambda: bool(lab.runs(experiment)) and len(lab.points(lab.only_run(experiment), "val_loss")) >= epochs)
    launch.send_signal(how)
    launch.communicate(timeout=60)


@pytest.mark.fault
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_same_command_goes_on_in_the_same_run(lab: Lab, how: signal.Signals) -> None:
    """Guards: a second run, a run left KILLED, points lost or twice, settings that changed without a word."""
    experiment = f"goes-on-{how.name}"
    cut_off(lab, experiment, how)
    (before,) = lab.runs(experiment)
    done = lab.run(*FIT, "--experiment", experiment, "--model.init_args.lr", "0.002")
    assert done.returncode == 0, done.stdout
    assert f"going on with {before.info.run_name}" in done.stdout and "going on after epoch" in done.stdout

    run = lab.only_run(experiment)
    assert run.info.run_id == before.info.run_id and run.info.status == "FINISHED"
    assert run.info.end_time > before.info.start_time and "killed_by" not in run.data.tags
    for key in ("train_loss", "val_loss", "val_acc"):
        assert [step for step, _ in lab.points(run, key)] == [0, 1, 2, 3, 4], key
    assert len(lab.points(run, "test_acc")) == 1
    system = [step for step, _ in lab.points(run, "system/cpu_utilization_percentage")]
    assert system == list(range(len(system))), "system metrics go on"
    lr = run.data.params["model.init_args.lr"]
    assert run.data.tags["drift.model.init_args.lr"] == f"{lr} -> 0.002" and run.data.tags["resumes"] == "1"
    files = {file.path for file in lab.client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "config.resume-1.yaml"} <= files


@pytest.mark.fault
def test_new_starts_a_new_run(lab: Lab) -> None:
    """Guards: a user who cannot get rid of an old attempt; one that is left open."""
    cut_off(lab, "anew", signal.SIGKILL)
    done = lab.run(*FIT, "--experiment", "anew", "--new", "--trainer.max_epochs", "1")
    assert done.returncode == 0, done.stdout
    assert sorted(run.info.status for run in lab.runs("anew")) == ["FINISHED", "KILLED"]


def test_must_refuses_to_start_afresh(lab: Lab) -> None:
    """Guards: a job of days that starts from nothing since a name was mistyped."""
    done = lab.run(*FIT, "--experiment", "nothing-there", "--resume", "must")
    assert done.returncode == 2 and "nothing to go on with" in done.stdout
    assert not lab.runs("nothing-there")


def test_what_is_in_the_spool_is_known(tmp_path: Path) -> None:
    """Guards: points that are dropped though they are new, or kept though they repeat one."""
    job = Job(tmp_path)
    file = job.spool
    twice = [Metric("several", value, 0, 0) for value in (1.0, 2.0)]
    spool.append(file, record_of("r", [Metric("loss", 1.0, 0, 3), *twice], [Param("lr", "1")], [RunTag("t", "a")]))
    with open(file, "ab") as torn:
        torn.write(b'{"run_id": "r", "metr')
    history = History(job)
    assert history.next_step("r", "lo") == 4 and history.next_step("r", "none") == 0
    assert not history.takes_back("r", Metric("loss", 1.0, 0, 4)), "a step that is new"
    assert not history.takes_back("other", Metric("loss", 1.0, 0, 3)), "of another run"
    assert not history.takes_back("r", Metric("several", 1.0, 0, 0)), "several points at one step are meant"
    assert history.takes_back("r", Metric("loss", 7.0, 9, 3))
    assert not history.takes_back("r", Metric("loss", 8.0, 9, 3)), "logged without a step: the next one is new"
    assert history.drift("r", "lr", "2") == "1 -> 2" and history.drift("r", "lr", "1") is None
    spool.append(file, record_of("r", [], [], [RunTag("drift.lr", "1 -> 2")]))
    assert History(job).drift("r", "lr", "3") == "1 -> 2 -> 3" and History(job).drift("r", "lr", "2") is None
    assert History(job).drift("r", "lr", "1") == "1 -> 2 -> 1", "back again is a change too"


def test_a_promise_that_is_kept_meanwhile_changes_nothing(tmp_path: Path) -> None:
    """Guards: points twice, where the server gives the run's id after this start has read what stands under ours."""
    job = Job(tmp_path)
    spool.append(job.spool, record_of("promised", [Metric("loss", 1.0, 0, step) for step in (0, 1)], [], []))
    history = History(job)
    Promises(job).keep({"promised": "real"})
    assert history.takes_back("real", Metric("loss", 1.0, 0, 0))
    assert history.takes_back("promised", Metric("loss", 1.0, 0, 1))
