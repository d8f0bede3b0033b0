"""`trainer fit` as a user types it: one job, one run, all of it true."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from harness import DIGITS, PROJECT, Lab

# Loads the logged model where this repository's package cannot be imported.
LOAD_MODEL = """
import sys
sys.modules["trainer"] = None
import mlflow, torch
model = mlflow.pytorch.load_model(sys.argv[1])
print(tuple(model(torch.zeros(5, 3, 16, 16)).shape))
"""


@pytest.fixture(scope="module")
def trained(lab: Lab) -> subprocess.CompletedProcess[str]:
    """Digits for three epochs on two gloo ranks."""
    words = ("--devices", "2", "--experiment", "trained", "--trainer.max_epochs", "3")
    return lab.run(*DIGITS, *words, MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL="0.5")


def test_two_processes_make_one_finished_run(lab: Lab, trained: subprocess.CompletedProcess[str]) -> None:
    """Guards: unguarded autolog makes a run on every rank, and the first to end closes it for all."""
    assert trained.returncode == 0, trained.stdout
    run = lab.only_run("trained")
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("digits-")
    assert trained.stdout.count(run.info.run_id) == 2, "the run's URL stands at the start and in the summary"
    assert "FINISHED, best epoch" in trained.stdout and "test_acc" in trained.stdout


def test_metrics_stand_at_the_epoch_they_belong_to(lab: Lab, trained: subprocess.CompletedProcess[str]) -> None:
    """Guards: training metrics logged one epoch late and the last one never, points twice, a second x-axis."""
    run = lab.only_run("trained")
    for key in ("train_loss", "train_acc", "val_loss", "val_acc"):
        assert [step for step, _ in lab.points(run, key)] == [0, 1, 2], key
    assert len(lab.points(run, "test_acc")) == 1
    assert not [key for key in run.data.metrics if key.endswith(("_step", "_epoch")) and key != "best_epoch"]
    printed = [line for line in trained.stdout.splitlines() if line.startswith("epoch ")]
    for step, line in enumerate(printed):
        value = dict(lab.points(run, "train_loss"))[step]
        assert f"train_loss {value:.4g}" in line, "what is printed is what is logged"


def test_hyperparameters_config_and_provenance_are_recorded(
    lab: Lab, trained: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    """Guards: autolog alone records `epochs` and the optimizer's defaults, and no early stopping."""
    run = lab.only_run("trained")
    params = run.data.params
    assert params["trainer.max_epochs"] == params["epochs"] == "3"
    assert params["model.init_args.architecture"] == "small_cnn"
    assert params["early_stopping.patience"] == "5" and params["early_stopping.monitor"] == "val_loss"
    assert params["trainer.callbacks.0.StagedFineTuning.init_args.unfreeze_at_epoch"] == "1"
    config = yaml.safe_load(
        Path(lab.client.download_artifacts(run.info.run_id, "config.yaml", str(tmp_path))).read_text()
    )
    assert config["trainer"]["max_epochs"] == 3 and config["seed_everything"] == 42
    summary = Path(lab.client.download_artifacts(run.info.run_id, "model_summary.txt", str(tmp_path))).read_text()
    assert "backbone" in summary
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert run.data.tags["mlflow.source.git.commit"] == head.stdout.strip()
    assert run.data.tags["mlflow.source.git.branch"] and run.data.tags["git.dirty"] in ("true", "false")
    assert "configs/digits.yaml" in run.data.tags["mlflow.source.name"]
    assert run.data.tags["hardware.gpus"].isdecimal() and run.data.tags["environment.torch"]


def test_system_metrics_are_sampled_once_for_the_machine(lab: Lab, trained: subprocess.CompletedProcess[str]) -> None:
    """Guards: no system metrics at all, or one series of each per rank in the same place."""
    run = lab.only_run("trained")
    for key in ("cpu_utilization_percentage", "system_memory_usage_percentage", "disk_usage_percentage"):
        steps = [step for step, _ in lab.points(run, f"system/{key}")]
        assert len(steps) >= 5 and steps == list(range(len(steps)))
    assert "system/network_receive_megabytes" in run.data.metrics


def test_the_best_model_loads_without_this_repository(lab: Lab, trained: subprocess.CompletedProcess[str]) -> None:
    """Guards: autolog pickles the last model, which needs the user's code to be loaded."""
    run = lab.only_run("trained")
    (model,) = lab.client.search_logged_models([run.info.experiment_id])
    assert model.source_run_id == run.info.run_id and model.status == "READY"
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert run.outputs.model_outputs[0].step == int(run.data.metrics["best_epoch"])
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD_MODEL, f"models:/{model.model_id}"],
        env=lab.environment,
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert loaded.stdout.strip() == "(5, 10)", loaded.stderr
    import mlflow

    mlflow.set_tracking_uri(lab.uri)
    information = mlflow.models.get_model_info(f"models:/{model.model_id}")
    assert information.signature is not None and information.saved_input_example_info is not None


def test_the_model_is_the_best_checkpoint_not_the_last(lab: Lab) -> None:
    """Guards: the last weights tested and logged under the best one's name; here the worst epoch counts as the best."""
    words = ("--trainer.max_epochs", "3", "--monitor", "train_acc", "--mode", "min")
    done = lab.run(*DIGITS, "--experiment", "best", *words)
    assert done.returncode == 0, done.stdout
    run = lab.only_run("best")
    accuracies = [value for _, value in lab.points(run, "train_acc")]
    assert run.data.metrics["best_epoch"] == accuracies.index(min(accuracies)) == 0
    assert run.data.metrics["test_acc"] < 0.9, "the first epoch's weights, not the last's, were tested"


def test_a_runs_own_config_trains_again_on_other_devices(
    lab: Lab, trained: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    """Guards: a config.yaml or a `--print_config` that names this job's devices and folder, and is refused."""
    config = lab.client.download_artifacts(lab.only_run("trained").info.run_id, "config.yaml", str(tmp_path))
    done = lab.run("fit", "--config", config, "--experiment", "again", "--trainer.fast_dev_run", "true")
    assert done.returncode == 0 and "no checkpoint was written" in done.stdout, done.stdout
    assert lab.only_run("again").info.status == "FINISHED"


def test_a_missing_config_is_said_in_one_line(lab: Lab) -> None:
    """Guards: a traceback from the parser for a file that is not there."""
    done = lab.run("fit", "--config", "configs/none.yaml")
    assert done.returncode == 2 and "configs/none.yaml" in done.stdout and "Traceback" not in done.stdout


def test_ranks_other_than_0_print_into_files(lab: Lab, trained: subprocess.CompletedProcess[str]) -> None:
    """Guards: every line of the terminal once per rank, and a failed rank whose output is nowhere."""
    folder = lab.folder / "state" / "digits" / lab.only_run("trained").info.run_name
    assert [file.parent.name for file in folder.glob("logs/*/attempt_0/*/stderr.log")] == ["1"]
    assert len([line for line in trained.stdout.splitlines() if line.startswith("epoch 0/2")]) == 1


def test_the_resolved_config_is_printed_without_a_job(lab: Lab) -> None:
    """Guards: `--print_config` that starts workers and waits for a server."""
    done = lab.run(*DIGITS, "--print_config", MLFLOW_TRACKING_URI="http://127.0.0.1:1")
    assert done.returncode == 0, done.stdout
    assert yaml.safe_load(done.stdout)["model"]["class_path"] == "trainer.vision.ImageClassifier"


def test_the_run_record_names_the_run(lab: Lab, trained: subprocess.CompletedProcess[str]) -> None:
    """Guards: a state folder that cannot be matched to its run a year later."""
    run = lab.only_run("trained")
    folder = lab.folder / "state" / "digits" / run.info.run_name
    assert json.loads((folder / "run.json").read_text())["run_id"] == run.info.run_id
    assert {file.name for file in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert os.path.getsize(folder / "spool.jsonl") == int((folder / "spool.offset").read_text())
