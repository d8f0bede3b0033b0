"""A job that goes on by itself, in this process: from which checkpoint, for how many epochs, with which state.

What takes real processes and kills is in test_cut_off.py.
"""

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwise import same
from trainer import app
from trainer.app import TrainingCLI
from trainer.checkpoints import callbacks
from trainer.checkpoints.files import NEWEST_FIRST, Newest, load_whole, newest
from trainer.errors import UserError
from trainer.tracking.job import Job
from trainer.whole_file import write_whole

from . import full_disk_ranks

STOPPING = (
    "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
    "--trainer.callbacks.monitor=val_loss",
    "--trainer.callbacks.patience=2",
)
SCORES = [3.0, 2.0, 4.0, 4.0, 1.0, 1.0]


pytestmark = pytest.mark.usefixtures("one_process")


def trained(folder: Path, epochs: int, *words: str) -> TrainingCLI:
    """What `trainer fit` trains in a job's folder, new or not, without a server."""
    quiet = ("--trainer.enable_progress_bar=false", f"--trainer.max_epochs={epochs}")
    cli = TrainingCLI(Job(folder), ["--model=scored.Scored", f"--model.init_args.scores={SCORES}", *quiet, *words])
    app.train(cli)
    return cli


def noisy(folder: Path, epochs: int, *words: str) -> TrainingCLI:
    """The same for a model and data that are full of noise."""
    quiet = ("--trainer.enable_progress_bar=false", f"--trainer.max_epochs={epochs}", "--seed_everything=1")
    cli = TrainingCLI(Job(folder), ["--model=noisy.Noisy", "--data=noisy.Data", *quiet, *words])
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


def test_all_epochs_done_and_none_measured_has_a_best(tmp_path: Path) -> None:
    """Guards: no test and no model, since Lightning says no `on_train_end` where there is nothing to train. (Tried.)"""
    unvalidated = "--trainer.limit_val_batches=0"
    trained(tmp_path, 2, unvalidated)
    (tmp_path / "checkpoints" / "best.ckpt").unlink()  # it was cut off before the last one was taken for it
    assert load(Path(trained(tmp_path, 2, unvalidated).best.best_model_path))["epoch"] == 1


def test_a_job_that_stopped_early_stays_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards: Lightning restores EarlyStopping, but not that it had stopped the training: one more epoch."""
    assert trained(tmp_path, 6, *STOPPING).trainer.global_step == 8
    again = trained(tmp_path, 6, *STOPPING)
    assert again.trainer.global_step == 8 and load(Path(again.best.best_model_path))["epoch"] == 1
    assert load(tmp_path / "checkpoints" / "last.ckpt")["epoch"] == 3


@pytest.mark.parametrize("words", [(), ("--data.num_workers=2",), ("--model.plateau=true",)])
def test_fact_D_it_goes_on_bit_for_bit(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Guards: dropout, shuffling, workers' seeds that start anew, and a ReduceLROnPlateau one epoch behind.

    (Tried: without the random states, and with them put back in on_train_start; without the plateau's value.)
    """
    noisy(tmp_path / "whole", 4, *words)
    noisy(tmp_path / "cut", 2, *words)
    noisy(tmp_path / "cut", 4, *words)
    whole, cut = (load(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "cut"))
    assert same(whole["state_dict"], cut["state_dict"])
    assert same(whole["optimizer_states"], cut["optimizer_states"])
    assert same(whole["lr_schedulers"], cut["lr_schedulers"])


def lr(cli: TrainingCLI) -> float:
    return cli.trainer.optimizers[0].param_groups[0]["lr"]


def test_a_changed_setting_applies_and_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards: a run whose params say one lr and whose optimizer has another, since Lightning restores the old one."""
    assert lr(noisy(tmp_path, 1)) == 0.01
    assert lr(noisy(tmp_path, 2, "--model.lr=0.003")) == 0.003
    assert "lr is now 0.003 (0.01 before)\n" in capsys.readouterr().err
    assert lr(noisy(tmp_path, 3, "--model.lr=0.003")) == 0.003
    assert "lr" not in capsys.readouterr().err
    assert load(tmp_path / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"][0]["lr"] == 0.003


def test_what_a_schedule_has_moved_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards: a new lr in the middle of a schedule that knows the old one; one that is ignored without a word."""
    moved = lr(noisy(tmp_path, 3, "--model.plateau=true"))
    assert moved < 0.01
    noisy(tmp_path, 4, "--model.plateau=true", "--model.lr=0.5")
    assert "lr goes on from the checkpoint's" in capsys.readouterr().err
    noisy(tmp_path, 5, "--model.plateau=true", "--model.lr=0.5")
    assert "lr" not in capsys.readouterr().err, "said when it changes, not at every start"


def test_a_changed_patience_applies(tmp_path: Path) -> None:
    """Guards: Lightning restores the patience too, so that a longer one changes nothing."""
    trained(tmp_path, 3, *STOPPING)
    assert trained(tmp_path, 6, *STOPPING[:2], "--trainer.callbacks.patience=4").trainer.global_step == 12


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--model.width=16",),
            "last.ckpt is a checkpoint of another model than Noisy: .*; --new starts a new",
        ),
        (("--trainer.max_epochs=1",), "this job has trained 2 epochs already: raise it; --new starts a new run"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    """Guards: a traceback from inside Lightning, or epochs that are thrown away."""
    noisy(tmp_path, 2)
    with pytest.raises(UserError, match=said):
        noisy(tmp_path, 3, *words)


# ---- damaged files


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def zeros(file: Path) -> None:
    """What a power loss leaves where the size was on disk and the content was not."""
    file.write_bytes(bytes(file.stat().st_size))


def zeros_at_the_end(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def flip(file: Path) -> None:
    """One bit of a tensor, which torch.load does not notice."""
    content = bytearray(file.read_bytes())
    tensor = load(file)["state_dict"]["weight"].numpy().tobytes()
    content[content.index(tensor, content.index(b"data/0"))] ^= 1
    file.write_bytes(content)


def text(file: Path) -> None:
    file.write_text("no checkpoint")


def weights(file: Path) -> None:
    torch.save({"state_dict": {}}, file)


@pytest.mark.parametrize("damage", [cut, empty, zeros, zeros_at_the_end, flip, text, weights])
def test_a_damaged_file_is_skipped_and_said(
    job: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    """Guards: a training that starts anew, or goes on with wrong weights, for one torn file. (Tried: without CRCs.)"""
    folder = job / "checkpoints"
    for file in list(folder.iterdir()):  # each has several names: damage one
        file.write_bytes(file.read_bytes())
    damage(folder / "last.ckpt")
    assert newest(folder) == Newest(folder / "previous.ckpt", 1)
    how = "holds no state of a training" if damage is weights else "is damaged"
    assert capsys.readouterr().err == f"trainer: last.ckpt {how}; going on from previous.ckpt, of epoch 1\n"
    damage(folder / "previous.ckpt")
    assert newest(folder) == Newest(folder / "best.ckpt", 1)
    damage(folder / "best.ckpt")
    assert newest(folder) is None and "the training starts anew" in capsys.readouterr().err


def test_a_flipped_bit_anywhere_is_found_or_harmless(job: Path) -> None:
    """Guards: a place in the file that no checksum covers."""
    file = job / "checkpoints" / "last.ckpt"
    content = file.read_bytes()
    good = load(file)
    for at in range(0, len(content), len(content) // 200):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        file.write_bytes(flipped)
        checkpoint = load_whole(file)
        assert checkpoint is None or same(checkpoint["state_dict"], good["state_dict"]), at


def test_a_damaged_file_is_not_kept_as_the_previous_one(job: Path) -> None:
    """Guards: a save that puts the damaged last.ckpt in the place of the good previous one. (Tried.)"""
    flip(job / "checkpoints" / "last.ckpt")
    trained(job, 3)
    folder = job / "checkpoints"
    assert load(folder / "last.ckpt")["epoch"] == 2 and load(folder / "previous.ckpt")["epoch"] == 1
    assert (folder / "last.ckpt.damaged").exists()


def test_a_damaged_best_is_decided_anew(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards: a job that trains to its end and then cannot read the best checkpoint that it tests."""
    empty(job / "checkpoints" / "best.ckpt")
    cli = trained(job, 4)  # the fourth epoch is worse than the second was
    assert "best.ckpt is damaged" in capsys.readouterr().err
    assert load(Path(cli.best.best_model_path))["epoch"] == 3


def test_the_best_is_the_file_that_is_there(job: Path) -> None:
    """Guards: a job that was killed between best.ckpt and last.ckpt, and gives a newer file an older one's score."""
    folder = job / "checkpoints"
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    trained(job, 5)  # the fifth epoch is the best
    (folder / "last.ckpt").unlink()
    (folder / "last.ckpt").write_bytes(first["last.ckpt"])
    cli = trained(job, 4)
    assert load(Path(cli.best.best_model_path))["epoch"] == 4 and float(cli.best.best_model_score or 0) == 1.0


def test_a_folder_that_was_moved_is_gone_on_with(job: Path) -> None:
    """Guards: Lightning forgets the best where its folder has another path: a lab that was moved, or is mounted."""
    (job / "checkpoints").rename(job / "moved")
    (job / "job").mkdir()
    (job / "moved").rename(job / "job" / "checkpoints")
    cli = trained(job / "job", 4)
    assert load(Path(cli.best.best_model_path))["epoch"] == 1 and float(cli.best.best_model_score or 0) == 2.0
    assert Path(cli.best.best_model_path).parent == job / "job" / "checkpoints"


def test_code_that_is_gone_is_no_damage(job: Path) -> None:
    """Guards: a class that was renamed, for which days of training are taken for damaged and begun anew."""
    file = job / "checkpoints" / "last.ckpt"
    module = types.ModuleType("gone")
    module.Setting = type("Setting", (), {"__module__": "gone"})  # type: ignore[attr-defined]
    sys.modules["gone"] = module
    torch.save({**load(file), "hyper_parameters": module.Setting()}, file)  # type: ignore[attr-defined]
    del sys.modules["gone"]
    with pytest.raises(UserError, match="last.ckpt needs code that is not here: No module named 'gone'; --new starts"):
        trained(job, 4)
    assert file.exists()


# ---- writing


def test_a_standing_checkpoint_is_never_written_to(job: Path) -> None:
    """Guards: hard links to it, in the outbox, that change under the upload."""
    links = {}
    for name in NEWEST_FIRST:
        os.link(job / "checkpoints" / name, job / name)
        links[name] = (job / name).read_bytes()
    trained(job, 5)
    for name, content in links.items():
        assert (job / name).read_bytes() == content and (job / "checkpoints" / name).read_bytes() != content


def test_at_every_moment_a_whole_one_stands_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: a moment between two renames in which there is no checkpoint; a torn previous one."""
    target, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    seen = []

    def look(replace: Callable[..., None]) -> Callable[..., None]:
        def looking(*names: Path) -> None:
            seen.append((target.read_bytes(), previous.read_bytes() if previous.exists() else None))
            replace(*names)
            seen.append((target.read_bytes(), previous.read_bytes()))

        return looking

    write_whole(target, memoryview(b"1"))
    (tmp_path / "last.ckpt.partial").write_bytes(b"of a killed writer")
    monkeypatch.setattr(os, "replace", look(os.replace))
    write_whole(target, memoryview(b"2"), previous)
    assert seen == [(b"1", None), (b"1", b"1"), (b"1", b"1"), (b"2", b"1")]
    os.link(target, tmp_path / "same")
    os.replace(tmp_path / "same", previous)  # where a writer was killed between the two
    write_whole(target, memoryview(b"3"), previous)
    assert (target.read_bytes(), previous.read_bytes()) == (b"3", b"2")
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_a_users_own_checkpoint_io_is_left_alone(tmp_path: Path) -> None:
    """Guards: a plugin that the user has configured and that is silently replaced."""
    plugin = "lightning.pytorch.plugins.io.AsyncCheckpointIO"
    cli = trained(tmp_path, 2, f"--trainer.plugins={plugin}")
    assert type(cli.trainer.strategy.checkpoint_io).__name__ == "AsyncCheckpointIO"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 128 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_does_not_end_the_training(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards: a job that dies in epoch 90 of 100; a torn file; a best score that belongs to no file; endless lines."""
    best = full_disk_ranks.trained(small_disk)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trainer: ")]
    assert len(said) == 2 and "No space left on device" in said[0] and "written again" in said[1], said
    check_full_disk(small_disk, best)


def test_a_disk_that_stays_full_is_an_error_in_the_end(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards: a job that ends well with a last.ckpt of epoch 0, and tests what is not its best."""
    monkeypatch.setattr(callbacks, "ROOM_SECONDS", 0.0)
    with pytest.raises(OSError, match="best.ckpt and last.ckpt cannot be written: No space left"):
        full_disk_ranks.trained(small_disk, frees_in_epoch=99)
    assert load(small_disk / "checkpoints" / "last.ckpt")["epoch"] == 0


@pytest.mark.fault
def test_a_full_disk_hangs_no_rank(small_disk: Path, tmp_path: Path) -> None:
    """Guards: an exception on rank 0, which alone writes, while the others wait for it; ranks that know other bests."""
    script = Path(__file__).with_name("full_disk_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    alone = {name: value for name, value in os.environ.items() if not name.endswith("WORLD_SIZE")}
    subprocess.run([*command, script, small_disk, tmp_path], check=True, timeout=120, env=alone)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    check_full_disk(small_disk, ranks[0])


def check_full_disk(job: Path, best: dict[str, Any]) -> None:
    folder = job / "checkpoints"
    assert {file.name for file in folder.iterdir()} == set(NEWEST_FIRST), "nothing half written"
    assert load(folder / "last.ckpt")["epoch"] == 3 and load(folder / "previous.ckpt")["epoch"] == 0
    assert best == {"path": str(folder / "best.ckpt"), "score": 1.0}, "of the second epoch, written when there was room"
    assert load(folder / "best.ckpt")["epoch"] == 1
    (state,) = [state for key, state in load(folder / "last.ckpt")["callbacks"].items() if "BestCheckpoint" in key]
    assert float(state["best_model_score"]) == 1.0
