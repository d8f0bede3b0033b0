"""A job that goes on by itself, in this process: from which checkpoint, for how many epochs, with which state.

What takes real processes and kills is in test_cut_off.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import app
from trainer.app import TrainingCLI
from trainer.tracking.job import Job

STOPPING = (
    "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
    "--trainer.callbacks.monitor=val_loss",
    "--trainer.callbacks.patience=2",
)
SCORES = [3.0, 2.0, 4.0, 4.0, 1.0, 1.0]


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """What launch tells a worker that is alone."""
    monkeypatch = pytest.MonkeyPatch()
    for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("ACCELERATOR", "cpu")
    monkeypatch.setattr("sys.argv", ["trainer"])
    yield
    monkeypatch.undo()


def trained(folder: Path, epochs: int, *words: str) -> TrainingCLI:
    """What `trainer fit` trains in a job's folder, new or not, without a server."""
    quiet = ("--trainer.enable_progress_bar=false", f"--trainer.max_epochs={epochs}")
    cli = TrainingCLI(Job(folder), ["--model=scored.Scored", f"--model.init_args.scores={SCORES}", *quiet, *words])
    app.train(cli)
    return cli


def load(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=False)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The folder of a job that was cut off after three epochs, the second of them the best."""
    trained(tmp_path, 3)
    return tmp_path


def test_a_job_goes_on_by_itself(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards: a job that was cut off and trains all its epochs again, or forgets which was the best."""
    cli = trained(job, 4)
    assert "going on after epoch 2\n" in capsys.readouterr().out
    assert cli.trainer.global_step == 8 and load(job / "checkpoints" / "last.ckpt")["epoch"] == 3
    assert float(cli.best.best_model_score or 0) == 2.0 and load(Path(cli.best.best_model_path))["epoch"] == 1


def test_a_job_that_goes_on_does_not_start_at_ckpt_path_again(job: Path) -> None:
    """Guards: `--ckpt_path` of the first start, which may be gone by now, in place of what was trained since."""
    assert trained(job, 4, "--ckpt_path=nowhere.ckpt").trainer.global_step == 8


def test_all_epochs_done_trains_nothing_and_has_a_best(job: Path) -> None:
    """Guards: a job that was cut off in its test trains one more epoch, or is not tested."""
    before = {file.name: file.stat().st_mtime_ns for file in (job / "checkpoints").iterdir()}
    cli = trained(job, 3)
    assert cli.trainer.global_step == 6 and load(Path(cli.best.best_model_path))["epoch"] == 1
    assert before == {file.name: file.stat().st_mtime_ns for file in (job / "checkpoints").iterdir()}


def test_a_job_that_stopped_early_stays_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards: Lightning restores EarlyStopping, but not that it had stopped the training: one more epoch."""
    assert trained(tmp_path, 6, *STOPPING).trainer.global_step == 8
    again = trained(tmp_path, 6, *STOPPING)
    assert again.trainer.global_step == 8 and load(Path(again.best.best_model_path))["epoch"] == 1
    assert load(tmp_path / "checkpoints" / "last.ckpt")["epoch"] == 3
