"""The best and the last checkpoint of a job: always there, whatever is configured; and going on from one."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import PROJECT, Lab
from trainer.app import TrainingCLI
from trainer.errors import UserError
from trainer.tracking.job import Job

EXAMPLE = str(PROJECT.parent / "examples" / "minimal" / "circle.yaml")
MODEL_CHECKPOINT = "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"


pytestmark = pytest.mark.usefixtures("one_process")


def fitted(folder: Path, scores: list[float], *words: str, ckpt_path: Path | None = None) -> TrainingCLI:
    """The app's own Trainer after as many epochs as there are scores, without a server."""
    quiet = ("--trainer.enable_progress_bar=false", f"--trainer.max_epochs={len(scores)}")
    cli = TrainingCLI(Job(folder), ["--model=scored.Scored", f"--model.init_args.scores={scores}", *quiet, *words])
    cli.trainer.fit(cli.model, ckpt_path=ckpt_path, weights_only=False if ckpt_path else None)
    return cli


def epoch_of(file: Path) -> int:
    return load(file)["epoch"]


def load(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=False)


def test_fact_C_last_is_the_last_epoch_when_the_metric_got_worse(tmp_path: Path) -> None:
    """Guards: ModelCheckpoint(save_last=True, monitor=…) writes last.ckpt only when the metric improves, so that a job
    that goes on from it repeats every epoch since the best one. (Tried: with such a callback.)"""
    cli = fitted(tmp_path, [1.0, 2.0, 3.0])
    folder = tmp_path / "checkpoints"
    assert {file.name for file in folder.iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert epoch_of(folder / "best.ckpt") == 0 and epoch_of(folder / "last.ckpt") == 2
    assert cli.best.best_model_path == str(folder / "best.ckpt")


def test_the_last_checkpoint_knows_the_best_so_far(tmp_path: Path) -> None:
    """Guards: last.ckpt written before the best one is decided on, so that a job that goes on has an older best.
    (Tried: with the two in the other order.)"""
    cli = fitted(tmp_path, [3.0, 2.0, 1.0])
    state = load(tmp_path / "checkpoints" / "last.ckpt")["callbacks"][cli.best.state_key]
    assert state["best_model_path"] == cli.best.best_model_path and float(state["best_model_score"]) == 1.0


@pytest.mark.parametrize(
    "words",
    [
        ("--trainer.callbacks=[]",),
        ("--trainer.callbacks=null",),
        # the same metric and mode, hence the same state
        (MODEL_CHECKPOINT, "--trainer.callbacks.monitor=val_loss"),
        # the same name for other epochs: it improves in each
        (MODEL_CHECKPOINT, "--trainer.callbacks.monitor=train_loss", "--trainer.callbacks.filename=best"),
        (MODEL_CHECKPOINT, "--trainer.callbacks.monitor=val_loss", "--trainer.callbacks.save_last=true"),
        ("--model.init_args.own_checkpoint=true",),
        ("--trainer.val_check_interval=0.5",),
    ],
    ids=["no callbacks", "null callbacks", "same monitor", "same name", "save_last", "the module's", "two validations"],
)
def test_no_configuration_loses_them(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Guards: a user's ModelCheckpoint that collides with ours, replaces it or overwrites its file. (Tried: with a
    plain ModelCheckpoint as ours, and with its folder as Lightning's default.)"""
    fitted(tmp_path, [2.0, 1.0, 3.0, 4.0], *words)
    folder = tmp_path / "checkpoints"
    assert (epoch_of(folder / "best.ckpt"), epoch_of(folder / "last.ckpt")) == (1, 3)


def test_the_last_steps_count_as_an_epoch(tmp_path: Path) -> None:
    """Guards: what `max_steps` leaves of the last epoch, lost. (Tried: with `save_last`.)"""
    fitted(tmp_path, [3.0, 2.0, 1.0], "--trainer.max_steps=3")
    assert load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_a_users_own_checkpoints_are_left_alone(tmp_path: Path) -> None:
    """Guards: protection of ours at the price of the user's."""
    own = (MODEL_CHECKPOINT, "--trainer.callbacks.save_top_k=-1", f"--trainer.callbacks.dirpath={tmp_path / 'own'}")
    fitted(tmp_path, [1.0, 2.0], *own)
    assert len(list((tmp_path / "own").iterdir())) == 2
    assert epoch_of(tmp_path / "checkpoints" / "best.ckpt") == 0


@pytest.mark.parametrize("words", ["--trainer.limit_val_batches=0", "--trainer.check_val_every_n_epoch=9"])
def test_without_a_validation_the_last_epoch_is_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    """Guards: a job without best.ckpt, which is neither tested nor logged, and does not say why. (Tried.)"""
    cli = fitted(tmp_path, [1.0, 2.0], words)
    assert epoch_of(Path(cli.best.best_model_path)) == 1
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert "val_loss was never measured, so the last epoch counts as the best" in capsys.readouterr().out


def test_a_training_metric_decides_by_its_own_epoch(tmp_path: Path) -> None:
    """Guards: where not every epoch is validated, Lightning saves at the validation, before the training metrics of
    the epoch are there, and so takes the one after the best. (Tried.)"""
    cli = fitted(tmp_path, [3.0, 3.0, 1.0, 2.0], "--monitor=train_score", "--trainer.check_val_every_n_epoch=2")
    assert epoch_of(Path(cli.best.best_model_path)) == 2


def test_a_wrong_monitor_is_said_after_the_first_epoch(tmp_path: Path) -> None:
    """Guards: a whole training whose best checkpoint is never decided on. (Tried.)"""
    with pytest.raises(UserError, match=r"no such metric is logged; did you mean val_loss\? .*train_loss, train_score"):
        fitted(tmp_path, [1.0, 2.0], "--monitor=vall_loss")
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(("scores", "best"), [([float("nan"), 2.0, 3.0], 1), ([float("nan")] * 3, 0)])
def test_a_loss_of_nan_is_never_the_best_while_there_is_another(tmp_path: Path, scores: list[float], best: int) -> None:
    """Guards: NaN compares as neither better nor worse, so that a diverged first epoch stays the best for ever."""
    words = [str(score).replace("nan", ".nan") for score in scores]
    cli = fitted(tmp_path, words)  # type: ignore[arg-type]
    assert epoch_of(Path(cli.best.best_model_path)) == best


def test_the_best_of_another_job_is_not_this_jobs(tmp_path: Path) -> None:
    """Guards: Lightning takes over the path of the best checkpoint with the state of the callback, so that a job that
    validates nothing tests and logs another job's model. (Tried.)"""
    fitted(tmp_path / "first", [1.0])
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    cli = fitted(tmp_path / "second", [1.0, 2.0], "--trainer.limit_val_batches=0", ckpt_path=last)
    assert Path(cli.best.best_model_path) == tmp_path / "second" / "checkpoints" / "best.ckpt"


# ---- whole jobs, two at a time, since each takes seconds to import PyTorch


JOBS = {
    "unvalidated": ("--config", EXAMPLE, "--trainer.limit_val_batches=0", "--trainer.callbacks=null"),
    "diverged": ("--config", EXAMPLE, "--model.init_args.lr=1e30"),
    "went-on": ("--model=scored.Scored", "--model.init_args.scores=[4,3,2,1]", "--ckpt_path={start}"),
}


@pytest.fixture(scope="module")
def jobs(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory, one_process: None
) -> dict[str, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("start")
    fitted(folder, [4.0, 3.0])
    start = folder / "checkpoints" / "last.ckpt"

    def run(name: str) -> subprocess.CompletedProcess[str]:
        words = [word.format(start=start) for word in JOBS[name]]
        epochs = "--trainer.max_epochs=4" if name == "went-on" else "--trainer.max_epochs=2"
        return lab.run("fit", "--experiment", name, *words, epochs, WORKSPACE=str(PROJECT / "tests"))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(JOBS, pool.map(run, JOBS), strict=True))


@pytest.mark.parametrize("name", ["unvalidated", "diverged"])
def test_a_job_without_a_good_epoch_is_tested_and_logged(
    lab: Lab, jobs: dict[str, subprocess.CompletedProcess[str]], name: str
) -> None:
    """Guards: a run without a model because nothing was validated; an infinite score for a loss of NaN. (Tried.)"""
    assert jobs[name].returncode == 0, jobs[name].stdout
    assert {"unvalidated": "the last epoch counts", "diverged": "the first epoch counts"}[name] in jobs[name].stdout
    run = lab.only_run(name)
    assert run.info.status == "FINISHED" and "test_acc" in run.data.metrics and "best_val_loss" not in run.data.metrics
    (model,) = lab.client.search_logged_models([run.info.experiment_id])
    assert model.status == "READY"


def test_a_job_goes_on_from_a_checkpoint(lab: Lab, jobs: dict[str, subprocess.CompletedProcess[str]]) -> None:
    """Guards: `--ckpt_path` that takes the weights and counts the epochs anew; a WORKSPACE that nothing is found in; a
    test step without test data that fails the job after all the training. (Tried.)"""
    assert jobs["went-on"].returncode == 0, jobs["went-on"].stdout
    run = lab.only_run("went-on")
    assert lab.points(run, "val_loss") == [(2, 2.0), (3, 1.0)]
    assert [round(value, 3) for _, value in lab.points(run, "train_loss")] == [-0.45, -0.65], "4 steps of 0.1 before"
    assert run.data.params["ckpt_path"].endswith("last.ckpt")
