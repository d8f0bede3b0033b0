"""What `trainer fit` says to mistakes: for each one line with the cause and the way out, and no run left as RUNNING.

All rows are typed in one folder, a copy of examples/minimal with the files below beside it. Two tables, for time: APP
is what the app says, many rows at the price of one import; JOBS are whole jobs against a real server.

Tried: without the part that finds it (class_paths.check, wrong_option, cause, require_kept, require_start,
does_not_fit, require_config_files, the line for early stopping) each group of rows is red.
"""

import json
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from harness import PROJECT, TRAINER, Lab

MINIMAL = PROJECT.parent / "examples" / "minimal"

FILES = {
    "broken.py": "import os\n\nimport foo\n\n\nclass Net: ...\n",
    "package/__init__.py": "",
    "package/broken.py": "import foo\n",
    "syntax.py": "class Net\n",
    "script.py": "import sys\n\nsys.exit(train())\n",
    "leaves.py": "import sys\n\nsys.exit(0)\n",
    "strict.py": (
        "from lightning import LightningModule\n\n\n"
        "class Net(LightningModule):\n"
        "    def __init__(self, layers: int):\n"
        "        super().__init__()\n"
        "        if layers > 9:\n"
        "            raise ValueError(f'{layers} layers do not fit')\n"
        "        self.depth = layers / self.heads\n"
    ),
    "section.yaml": "model: {class_path: net.Net}\ntrainr: {max_epochs: 3}\n",
    "key.yaml": "model: {class_path: net.Net}\ntrainer: {max_epoch: 3}\n",
    "init_arg.yaml": "model: {class_path: net.Net, init_arg: {width: 3}}\n",
    "tab.yaml": "model:\n\tclass_path: net.Net\n",
    "indented.yaml": "model:\n  class_path: net.Net\n init_args: {width: 3}\n",
    "empty.yaml": "",
    "images.yaml": (
        "model: {class_path: trainer.vision.ImageClassifier,"
        " init_args: {num_classes: 2, architecture: small_cnn, image_size: 8}}\n"
        "data: {class_path: trainer.vision.ImageDataModule, init_args: {root: good, image_size: 8, num_workers: 0}}\n"
        "trainer: {max_epochs: 1, use_distributed_sampler: false}\n"
    ),
    "text.ckpt": "no checkpoint\n",
}

M = "--config circle.yaml "
"""The minimal project's configuration."""
IMAGES = "--config images.yaml --data.init_args.root "

APP = {
    # ---- files
    "a YAML file that is not there": (
        "--config circel.yaml",
        "there is no configuration file circel.yaml; did you mean circle.yaml?",
    ),
    "an empty YAML file": ("--config empty.yaml", "empty.yaml is no configuration: it has no keys such as model:"),
    "a tab in YAML": ("--config tab.yaml", "tab.yaml, line 2: this is no YAML: found character '\\t'"),
    "a wrong indentation": ("--config circle.yaml --config indented.yaml", "indented.yaml, line 3: this is no YAML"),
    # ---- keys
    "a typo in a section": ("--config section.yaml", "'trainr.max_epochs' is not accepted; did you mean trainer.max"),
    "a typo in a key": ("--config key.yaml", "does not accept option 'max_epoch'; did you mean trainer.max_epochs?"),
    "a typo in init_args": ("--config init_arg.yaml", "model: init_arg stands beside class_path, where its arguments "),
    "a typo in an option": (M + "--trainer.max_epoch 3", "--trainer.max_epoch 3; did you mean trainer.max_epochs?"),
    "a typo in one of launch's": (M + "--experimnt x", "--experimnt x; did you mean experiment?"),
    # ---- classes
    "a typo in a class": (
        M + "--model.class_path net.Nett",
        "cannot import net.Nett: net has no Nett; did you mean Net?",
    ),
    "a typo in a module": (
        M + "--data nett.Points",
        "cannot import nett.Points: there is no module nett; did you mean net?",
    ),
    "a class without its module": (M + "--model Nett", "model: Nett is no class path such as net.Net"),
    "a callback's typo": (
        M + "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStoping",
        "lightning.pytorch.callbacks has no EarlyStoping; did you mean EarlyStopping?",
    ),
    "data where the model belongs": (
        M + "--model net.Points",
        "not correspond to a subclass of LightningModule, got net",
    ),
    "an import error in a package": (
        M + "--model package.broken.Net",
        "cannot import package.broken.Net: ModuleNotFoundError: No module named 'foo' (package/broken.py, line 1)",
    ),
    "a syntax error": (
        M + "--model syntax.Net",
        "cannot import syntax.Net: SyntaxError: expected ':' (syntax.py, line 1)",
    ),
    "a script that runs when imported": (
        M + "--model script.Net",
        "cannot import script.Net: NameError: name 'train' is not defined (script.py, line 3)",
    ),
    "a script that exits when imported": (
        M + "--model leaves.Net",
        "cannot import leaves.Net: SystemExit: 0 (leaves.py",
    ),
    # ---- arguments
    "a typo in an argument": (M + "--model.init_args.widht 3", "Option 'widht' is not accepted; did you mean width?"),
    "an argument that is unknown": (M + "--model.init_args.dropout 1", "'dropout' is not accepted; it takes width, lr"),
    "an argument of the wrong type": (M + "--model.init_args.width abc", "width: expected int, got abc"),
    "an argument that is missing": (M + "--model strict.Net", "the following arguments are required: layers"),
    "an argument that the class refuses": (
        M + "--model strict.Net --model.layers 10",
        "ValueError: 10 layers do not fit (strict.py, line 8)",
    ),
    "an error in the class": (
        M + "--model strict.Net --model.layers 3",
        "AttributeError: 'Net' object has no attribute 'heads' (strict.py, line 9)",
    ),
    # ---- the Trainer
    "devices in the wrong place": (
        M + "--trainer.devices 3",
        "trainer.devices is 3, but the command decides on it: take it ",
    ),
    "a strategy that is unknown": (M + "--trainer.strategy dp", "invalid strategy name: `strategy='dp'`"),
    "a number that is none": (M + "--trainer.max_epochs many", "trainer.max_epochs: expected int, got many"),
    "no checkpoints": (
        M + "--trainer.enable_checkpointing false",
        "trainer.enable_checkpointing is false, but every job keeps its best and its last checkpoint: take it out",
    ),
    "barebones": (
        M + "--trainer.barebones true",
        "trainer.barebones is true, but every job keeps its best and its last",
    ),
    # ---- a checkpoint to start at
    "a checkpoint that is not there": (M + "--ckpt_path nowhere.ckpt", "--ckpt_path: there is no file nowhere.ckpt"),
    "a checkpoint that is text": (M + "--ckpt_path text.ckpt", "text.ckpt is no checkpoint, or a damaged one"),
    "a checkpoint that is cut off": (M + "--ckpt_path cut.ckpt", "cut.ckpt is no checkpoint, or a damaged one"),
    "a checkpoint of weights alone": (M + "--ckpt_path weights.ckpt", "weights.ckpt is no checkpoint of a training"),
    "a checkpoint with all epochs done": (
        M + "--ckpt_path other.ckpt --trainer.max_epochs 1",
        "other.ckpt is of epoch 0, so trainer.max_epochs=1 leaves nothing to train: raise it",
    ),
    # ---- data and metrics
    "a dataset without images": (IMAGES + "hollow", "no images in hollow/training"),
    "classes that differ": (
        IMAGES + "differing",
        "classes in differing/validation and differing/training differ (dog)",
    ),
    "another number of classes": (
        IMAGES + "good --model.init_args.num_classes 3",
        "set model.init_args.num_classes to 2",
    ),
    "a metric that early stopping misses": (
        M + "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping --trainer.callbacks.monitor val_los",
        "Early stopping conditioned on metric `val_los` which is not available",
    ),
}
"""What is typed after `trainer fit`, and the decisive words of the line."""

JOBS = {
    "an import error": (
        M + "--model broken.Net",
        "cannot import broken.Net: ModuleNotFoundError: No module named 'foo' (broken.py, line 3)",
    ),
    "a dataset that is not there": (
        IMAGES + "nowhere",
        "no dataset at nowhere (expected nowhere/training/CLASS/*.jpg or",
    ),
    "an image that is cut off": (IMAGES + "cut --devices 2", "broken image cut/training/cat/0.png ("),
    "a checkpoint of another model": (
        M + "--ckpt_path other.ckpt --model.init_args.width 8",
        "--ckpt_path: other.ckpt is a checkpoint of another model than Net: it lacks layers.0.bias, layers.0.weight, "
        "layers.2.bias and 1 more; it has besides weight",
    ),
    "a metric that is not logged": (
        M + "--monitor vall_loss",
        "--monitor is vall_loss, but no such metric is logged; did you mean val_loss? (train_acc, train_loss, val_acc",
    ),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that everything is typed in."""
    folder = tmp_path_factory.mktemp("bad") / "project"
    shutil.copytree(MINIMAL, folder)
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    for dataset in ("good", "hollow", "differing", "cut"):
        for split in ("training", "validation", "evaluation"):
            for name in ("cat", "dog"):
                images(folder / dataset / split / name)
    for image in (folder / "hollow" / "training").rglob("*.png"):
        image.unlink()
    shutil.rmtree(folder / "differing" / "validation" / "dog")
    cut = folder / "cut" / "training" / "cat" / "0.png"
    cut.write_bytes(cut.read_bytes()[:60])

    loops = {"fit_loop": {"epoch_progress": {"current": {"processed": 1}}}}
    other = {"state_dict": {"weight": torch.zeros(1)}, "optimizer_states": [], "loops": loops, "global_step": 1}
    other |= {"pytorch-lightning_version": "2.6.6", "epoch": 0, "callbacks": {}}
    torch.save(other, folder / "other.ckpt")
    (folder / "cut.ckpt").write_bytes((folder / "other.ckpt").read_bytes()[:600])
    torch.save(other["state_dict"], folder / "weights.ckpt")
    return folder


def images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(2):
        Image.effect_noise((8, 8), 50).save(folder / f"{number}.png")


AGAIN = M + "--trainer.max_epochs 1 --trainer.default_root_dir here"


@pytest.fixture(scope="module")
def answers(project: Path) -> dict[str, tuple[int, str]]:
    """Exit code and output of every row of APP, and of a good one twice."""
    rows = {name: words for name, (words, _) in APP.items()} | {"once": AGAIN, "again": AGAIN}
    lines = json.dumps([shlex.split(words) for words in rows.values()])
    program = str(Path(__file__).with_name("app_answers.py"))
    done = subprocess.run(
        [sys.executable, program], cwd=project, input=lines, capture_output=True, text=True, check=True
    )
    return dict(zip(rows, map(tuple, json.loads(done.stdout)), strict=True))


@pytest.fixture(scope="module")
def jobs(lab: Lab, project: Path) -> dict[str, tuple[int, str]]:
    """The same of JOBS, each a job of its own; two at a time, since each takes seconds to import PyTorch."""

    def run(name: str) -> tuple[int, str]:
        words = ["fit", "--experiment", name, *shlex.split(JOBS[name][0])]
        call = {"cwd": project, "env": lab.environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run([TRAINER, *words], text=True, timeout=300, **call)
        return done.returncode, done.stdout

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(JOBS, pool.map(run, JOBS), strict=True))


def assert_one_line(answer: tuple[int, str], says: str) -> None:
    code, output = answer
    errors = [line for line in output.splitlines() if line.startswith("trainer: error:")]
    assert len(errors) == 1 and says in errors[0], output
    assert code == 2 and "Traceback" not in output, output


@pytest.mark.parametrize("name", APP)
def test_a_mistake_in_what_is_typed(answers: dict[str, tuple[int, str]], name: str) -> None:
    """Guards: a page of traceback, a line about something else, a job that starts all the same."""
    assert_one_line(answers[name], APP[name][1])


@pytest.mark.parametrize("name", [name for name in JOBS if name != "an import error"])
def test_a_mistake_that_a_job_finds(lab: Lab, jobs: dict[str, tuple[int, str]], name: str) -> None:
    """Guards: the same, and a run left behind as RUNNING."""
    assert_one_line(jobs[name], JOBS[name][1])
    assert [run.info.status for run in lab.runs(name)] == ["FAILED"]


def test_fact_P_an_import_error_in_a_users_file_is_shown(lab: Lab, jobs: dict[str, tuple[int, str]]) -> None:
    """Guards fact P: LightningCLI reports a class that is not there, or "not a valid subclass", for a file of the
    user's that is there and fails to import something else. (Tried: without `class_paths.check` the file and the line
    are missing.)"""
    assert_one_line(jobs["an import error"], JOBS["an import error"][1])
    assert lab.runs("an import error") == [], "nothing was recorded, so there is no run"


def test_fact_P_a_second_run_in_the_same_place_works(answers: dict[str, tuple[int, str]]) -> None:
    """Guards fact P: LightningCLI's SaveConfigCallback refuses a folder that has a config.yaml already. (Tried: with
    LightningCLI's default callback the second run fails.)"""
    assert answers["once"][0] == 0, answers["once"]
    assert answers["again"][0] == 0, answers["again"]
