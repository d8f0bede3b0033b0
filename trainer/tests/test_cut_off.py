"""Whole jobs whose rank 0 is killed again and again: in the end they are as if they had not been."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.entities import Run

from bitwise import same
from harness import DIGITS, PROJECT, Lab

pytestmark = pytest.mark.fault

NOISY = ("fit", "--model=noisy.Noisy", "--data=noisy.Data", "--seed_everything=1", "--data.num_workers=2")
JOBS = {
    # digits unfreezes its backbone in epoch 1: the first death leaves a checkpoint of the stage before
    "digits-1": (*DIGITS, "--devices=1"),
    "digits-2": (*DIGITS, "--devices=2"),
    "noisy-2": (*NOISY, "--devices=2"),
}
MOMENTS = ["before 1", "after 3", "test"]


@pytest.fixture(scope="module", params=JOBS)
def pair(
    request: pytest.FixtureRequest, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Run, str, Path]:
    """A run that nothing happened to; the same with three deaths, what it printed, and where it left marks of them."""
    marks = tmp_path_factory.mktemp("marks")

    def run(moments: list[str]) -> subprocess.CompletedProcess[str]:
        dies = ("--trainer.callbacks+=noisy.Dies", f"--trainer.callbacks.moments={moments}")
        words = (*JOBS[request.param], "--trainer.max_epochs=5", *dies, f"--trainer.callbacks.marks={marks}")
        name = f"{request.param}-{'cut' if moments else 'whole'}"
        restarts = ("--experiment", name, "--name", name, "--max-restarts", "3")
        return lab.run(*words, *restarts, WORKSPACE=str(PROJECT / "tests"))

    with ThreadPoolExecutor(2) as pool:
        whole, cut = pool.map(run, ([], MOMENTS))
    assert whole.returncode == 0 and cut.returncode == 0, cut.stdout
    runs = [lab.only_run(f"{request.param}-{how}") for how in ("whole", "cut")]
    return runs[0], runs[1], cut.stdout, marks


def test_fact_D_a_killed_job_is_as_if_it_had_not_been(lab: Lab, pair: tuple[Run, Run, str, Path]) -> None:
    """Guards: metrics of an epoch that are nowhere, since its checkpoint was written before they were (tried: MLflow's
    callback behind the checkpoints); other noise, another order, another stage of the fine-tuning after a resume; an
    epoch too many where the job was cut off in its test; no test or no model then.
    """
    whole, cut, output, marks = pair
    assert {file.name for file in marks.iterdir()} == {"before-1", "after-3", "test"}, "it died three times"
    for epoch in (0, 3, 4):
        assert f"going on after epoch {epoch}\n" in output
    assert "damaged" not in output
    keys = {key for key in whole.data.metrics if not key.startswith("system/")}
    assert keys == {key for key in cut.data.metrics if not key.startswith("system/")}
    for key in keys:
        points = lab.points(cut, key)
        assert points == lab.points(whole, key), key
        assert len(points) == (5 if key in ("train_loss", "val_loss") else len(points))
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (checkpoint(lab, run, name) for run in (whole, cut))
        assert same(one["state_dict"], other["state_dict"]), name
        assert same(one["optimizer_states"], other["optimizer_states"]), name
    (model,) = lab.client.search_logged_models([cut.info.experiment_id])
    assert model.status == "READY"
    files = {file.path for file in lab.client.list_artifacts(cut.info.run_id, "checkpoints")}
    assert files == {"checkpoints/last.ckpt", "checkpoints/best.ckpt"}


def checkpoint(lab: Lab, run: Run, name: str) -> dict[str, Any]:
    (file,) = (lab.folder / "state").glob(f"*/{run.info.run_name}/checkpoints/{name}")
    return torch.load(file, weights_only=False)
