"""`trainer run SCRIPT`: five habits of users (scripts/), each unmodified, under two processes: one true run."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow.entities import Run

from harness import Lab

SCRIPTS = Path(__file__).with_name("scripts")
# Which experiment a script's run is in: its own, or that of the job's name.
HABITS = {
    "no_mlflow": "no_mlflow",
    "guarded": "guarded",
    "unguarded": "unguarded-own",
    "own_logger": "own-logger",
    "pytorch_lightning_1": "pytorch_lightning_1",
}
WITHOUT_A_LOGGER = [name for name in HABITS if name != "own_logger"]

# Rank 1 is through before rank 0 has opened the run.
SLOW_RANK_0 = """
import os, time, mlflow
if os.environ["RANK"] == "0":
    time.sleep(5)
mlflow.start_run()
mlflow.log_metric("a", 1)
"""

# Validation through a batch sampler of its own, into which Lightning puts a sampler that pads 33 samples to 34.
PADDED = """
import lightning as L
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from no_mlflow import Net
from toy import loader

class Own(BatchSampler):
    pass

data = loader().dataset
validation = DataLoader(data, batch_sampler=Own(SequentialSampler(data), 4, False))
L.Trainer(max_epochs=1, enable_progress_bar=False).fit(Net(), loader(shuffle=True), validation)
"""

THREE_DEVICES = """
import lightning
from lightning.pytorch.demos.boring_classes import BoringModel

lightning.Trainer(accelerator="cpu", devices=3, max_epochs=1).fit(BoringModel())
"""

Ended = dict[str, "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def ended(lab: Lab) -> Ended:
    """Every script, run once; two at a time, since most of a job this small is waiting for imports."""

    def run(name: str) -> subprocess.CompletedProcess[str]:
        own = ("--lr", "0.2", "--devices", "theirs") if name == "no_mlflow" else ()
        return lab.run("run", "--devices", "2", str(SCRIPTS / f"{name}.py"), *own)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(HABITS, pool.map(run, HABITS), strict=True))


def run_of(lab: Lab, ended: Ended, name: str) -> Run:
    assert ended[name].returncode == 0, ended[name].stdout
    return lab.only_run(HABITS[name])


@pytest.mark.parametrize("name", HABITS)
def test_fact_H_a_script_is_one_finished_run(lab: Lab, ended: Ended, name: str) -> None:
    """Guards: unguarded calls make a run on every rank, and the first rank to end closes a shared one for all.

    With the store null on no rank, `unguarded` and `no_mlflow` are two runs each (tried).
    """
    run = run_of(lab, ended, name)
    assert run.info.status == "FINISHED"
    assert ended[name].stdout.count(f"/runs/{run.info.run_id}") == 2, "its URL stands at the start and in the summary"
    assert f"{name}.py" in run.data.tags["mlflow.source.name"] and "mlflow.source.git.commit" in run.data.tags
    assert run.data.tags["environment.torch"] and run.data.tags["hardware.cpu"]
    assert "system/cpu_utilization_percentage" in run.data.metrics


@pytest.mark.parametrize("name", WITHOUT_A_LOGGER)
def test_metrics_stand_once_at_the_epoch_they_belong_to(lab: Lab, ended: Ended, name: str) -> None:
    """Guards: what a module logs in its own on_train_epoch_end is recorded an epoch late, and the last never.

    Without `_after_the_module`, `own_epoch` is [(1, 0), (2, 1)] (tried).
    """
    run = run_of(lab, ended, name)
    assert lab.points(run, "own_epoch") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert [step for step, _ in lab.points(run, "train_loss")] == [0, 1, 2]
    # guarded.py validates every second epoch: the last one's point must not stand once more in the next.
    assert [step for step, _ in lab.points(run, "val_acc")] == ([1] if name == "guarded" else [0, 1, 2])
    assert run.data.params["epochs"] == "3" and "Mode" not in run.data.tags
    assert run.data.tags["metrics_of_rank_0"] == "train_loss, own_epoch", "logged without sync_dist"


def test_fact_J_a_logger_of_the_scripts_own_leaves_one_x_axis(lab: Lab, ended: Ended) -> None:
    """Guards: MLFlowLogger and autologging on one run: every metric twice, over steps and epochs; `epoch` twice a step.

    With autologging left on, `train_loss` also stands at 0, 1 and 2 (tried).
    """
    run = run_of(lab, ended, "own_logger")
    assert [step for step, _ in lab.points(run, "train_loss")] == [4, 9, 14]
    assert lab.points(run, "epoch") == [(4, 0.0), (9, 1.0), (14, 2.0), (15, 3.0)]
    assert run.info.run_name == "by the logger"


@pytest.mark.parametrize("name", HABITS)
def test_fact_J_no_logged_model_is_left_pending(lab: Lab, ended: Ended, name: str) -> None:
    """Guards: ranks other than 0 that open logged models of their own and never close them."""
    run = run_of(lab, ended, name)
    models = lab.client.search_logged_models([run.info.experiment_id])
    assert [model.status for model in models] == (["READY"] if name == "unguarded" else [])


def test_what_a_script_logs_itself_is_there_once(lab: Lab, ended: Ended) -> None:
    """Guards: writes of rank 1, a tracking server that the script names, points logged in the background and lost."""
    for name in ("guarded", "unguarded"):
        run = run_of(lab, ended, name)
        assert run.data.params["mine"] == "1" and lab.points(run, "mine") == [(0, 2.0)]
    assert run_of(lab, ended, "guarded").info.run_name == "guarded by rank"
    assert "names the tracking server http://127.0.0.1:1" in ended["unguarded"].stdout
    names = {artifact.path for artifact in lab.client.list_artifacts(run_of(lab, ended, "unguarded").info.run_id)}
    assert names == {"note.txt", "model_summary.txt"}


def test_fact_H_one_rank_registers_the_model(lab: Lab, ended: Ended) -> None:
    """Guards: every rank registers a model, and the made-up one of rank 1 is refused until the job hangs."""
    run = run_of(lab, ended, "unguarded")
    assert [version.run_id for version in lab.client.search_model_versions("name = 'toy'")] == [run.info.run_id]


def test_a_script_can_read_back_what_it_logged(lab: Lab, ended: Ended) -> None:
    """Guards: a script that looks at its own run before launch has delivered what it wrote. (Tried.)"""
    run_of(lab, ended, "guarded")
    assert "read back 1 2.0" in ended["guarded"].stdout


def test_hyperparameters_are_recorded(lab: Lab, ended: Ended) -> None:
    """Guards: autologging records the optimizer's defaults and none of what `save_hyperparameters` kept."""
    params = run_of(lab, ended, "no_mlflow").data.params
    assert params["model.lr"] == "0.2" and params["model.hidden"] == "8"
    params = run_of(lab, ended, "pytorch_lightning_1").data.params
    assert params["model.lr"] == "0.1" and params["data.batch_size"] == "4"
    assert run_of(lab, ended, "own_logger").data.params == {"lr": "0.1", "hidden": "8"}


@pytest.mark.parametrize("name", ["no_mlflow", "pytorch_lightning_1"])
def test_fact_I_early_stopping_is_recorded(lab: Lab, ended: Ended, name: str) -> None:
    """Guards: autologging knows `pytorch_lightning`'s EarlyStopping only, not that of `lightning`."""
    params = run_of(lab, ended, name).data.params
    assert params["early_stopping.monitor"] == "val_acc" and params["early_stopping.mode"] == "max"
    if name == "pytorch_lightning_1":
        assert params["early_stopping.1.monitor"] == "train_loss" and params["early_stopping.1.patience"] == "7"


def test_fact_K_seeded_runs_have_names_of_their_own(lab: Lab, ended: Ended) -> None:
    """Guards: a seeded process draws the same random run name every time."""
    names = [run_of(lab, ended, name).info.run_name for name in ("no_mlflow", "pytorch_lightning_1")]
    assert names[0].startswith("no_mlflow-2") and names[1].startswith("pytorch_lightning_1-2")


def test_fact_O_arguments_and_devices_reach_the_script(lab: Lab, ended: Ended) -> None:
    """Guards: arguments that `trainer` takes for its own; devices="auto", one process on a CPU to Lightning."""
    assert ended["no_mlflow"].stdout.count("the script got --devices theirs") == 1
    assert ended["guarded"].returncode == 0, 'Trainer(devices="auto")'


@pytest.mark.parametrize("name", ["no_mlflow", "unguarded", "own_logger", "pytorch_lightning_1"])
def test_fact_N_a_scripts_loaders_are_not_padded(lab: Lab, ended: Ended, name: str) -> None:
    """Guards: 33 samples validated by two processes as 34, and a mean over 16 of 16.5 samples (Lightning #21859)."""
    run = run_of(lab, ended, name)
    for _, accuracy in lab.points(run, "val_acc"):
        assert accuracy * 33 == pytest.approx(round(accuracy * 33), abs=1e-4)


def test_a_script_that_logs_nothing_is_a_run_all_the_same(lab: Lab, tmp_path: Path) -> None:
    """Guards: a job without a run; a script's `sys.exit(0)` taken for a failure."""
    script = tmp_path / "silent.py"
    script.write_text("import sys\nprint('nothing to log')\nsys.exit(0)\n")
    done = lab.run("run", str(script))
    assert done.returncode == 0, done.stdout
    assert lab.only_run("silent").info.status == "FINISHED"


@pytest.mark.parametrize(
    ("name", "text", "code", "says"),
    [
        (
            "raises",
            "raise RuntimeError('on purpose')\n",
            1,
            "rank 0: RuntimeError: on purpose (raises.py, line 1)",
        ),
        ("exits", "import mlflow, sys\nmlflow.log_param('a', 1)\nsys.exit(3)\n", 1, "rank 0: SystemExit: 3"),
        ("leaves", "import mlflow, os\nmlflow.log_param('a', 1)\nos._exit(0)\n", 1, "rank 0 left in the middle"),
        ("devices", THREE_DEVICES, 2, "devices.py asks its"),
    ],
)
def test_a_script_that_fails_says_why(lab: Lab, tmp_path: Path, name: str, text: str, code: int, says: str) -> None:
    """Guards: FINISHED for a script that ended with an error, or a traceback where the devices are the mistake."""
    script = tmp_path / f"{name}.py"
    script.write_text(text)
    done = lab.run("run", str(script))
    assert done.returncode == code and f"trainer: error: {says}" in done.stdout, done.stdout
    assert lab.only_run(name).info.status == "FAILED", "also where it failed before it had logged anything"


@pytest.mark.parametrize(("name", "text"), [("slow_rank_0", SLOW_RANK_0), ("padded", PADDED)])
def test_scripts_that_were_taken_wrongly(lab: Lab, tmp_path: Path, name: str, text: str) -> None:
    """Guards: a run for rank 1 that nobody asked for; padding that is not named. (Each was found so.)"""
    script = tmp_path / f"{name}.py"
    script.write_text(text)
    done = lab.run("run", "--devices", "2", str(script), PYTHONPATH=str(SCRIPTS))
    assert done.returncode == 0, done.stdout
    run = lab.only_run(name)
    assert run.info.status == "FINISHED"
    if name == "padded":
        assert run.data.tags["padded_samples.validation"] == "1" and "validation counts 1 samples twice" in done.stdout


def test_a_script_that_is_not_there(lab: Lab) -> None:
    """Guards: a traceback from deep inside of a worker."""
    done = lab.run("run", "nowhere.py")
    assert done.returncode == 2 and done.stdout.startswith("trainer: error: no script at nowhere.py")
