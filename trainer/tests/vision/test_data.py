"""Image folders: what is read is repeatable, and what is wrong with a dataset is said in one line."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from trainer.errors import UserError
from trainer.vision import DigitsDataModule, Food11DataModule, ImageClassifier, ImageDataModule
from trainer.vision.digits import write_digits

OneLine = Callable[[BaseException], str]


def open_images(root: Path, **arguments: int) -> ImageDataModule:
    data = ImageDataModule(str(root), **{"batch_size": 8, "num_workers": 0, "image_size": 16, **arguments})
    data.setup("fit")
    return data


def test_missing_food11_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one_line: OneLine) -> None:
    """Without the dataset the first start of food11 would end in a FileNotFoundError from torchvision."""
    monkeypatch.setenv("FOOD11_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError) as raised:
        Food11DataModule().setup("fit")
    for words in (str(tmp_path / "nowhere"), "trainer data food11 --to", "--archive", "FOOD11_DATA_DIR"):
        assert words in one_line(raised.value)


def test_food11_looks_in_the_lab_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable, which Compose sets, must count as none."""
    monkeypatch.setenv("FOOD11_DATA_DIR", "")
    monkeypatch.setenv("LAB_DIR", "/srv/lab")
    assert Food11DataModule().root == Path("/srv/lab/data/food11")
    assert Food11DataModule("/here").root == Path("/here")


@pytest.mark.parametrize("damage", ["missing split", "empty split", "empty class", "other classes"])
def test_incomplete_dataset_is_refused_at_the_start(image_root: Path, damage: str, one_line: OneLine) -> None:
    """A test split that is missing would otherwise show after hours of training."""
    folder = image_root / "evaluation"
    if damage == "missing split":
        shutil.rmtree(folder)
    elif damage == "empty split":
        shutil.rmtree(folder)
        folder.mkdir()
    elif damage == "empty class":
        shutil.rmtree(folder / "class_01")
        (folder / "class_01").mkdir()
    else:
        (folder / "class_01").rename(folder / "class_1")
    with pytest.raises(UserError) as raised:
        open_images(image_root)
    assert str(folder) in one_line(raised.value)
    if damage in ("empty class", "other classes"):
        assert "class_01" in str(raised.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_image_is_named(image_root: Path, num_workers: int, one_line: OneLine) -> None:
    """A worker's error comes with a page of traceback, and Pillow's own does not always name the file."""
    broken = image_root / "validation" / "class_00" / "0_0.png"
    broken.write_bytes(broken.read_bytes()[:300])
    data = open_images(image_root, num_workers=num_workers)
    with pytest.raises(UserError, match="broken image") as raised:
        list(data.val_dataloader())
    assert str(broken) in one_line(raised.value)


def test_epochs_repeat_whatever_reads_them(image_root: Path) -> None:
    """Noise drawn from a worker's own generator changes with the number of workers."""
    batches = {}
    for num_workers in (0, 2):
        torch.manual_seed(num_workers)  # must not matter
        loader = open_images(image_root, num_workers=num_workers).train_dataloader()
        batches[num_workers] = [images for images, _ in loader]
    assert all(torch.equal(a, b) for a, b in zip(batches[0], batches[2], strict=True))


def test_reading_draws_nothing_from_the_global_generator(image_root: Path) -> None:
    """Dropout's noise would otherwise depend on how many images were read before."""
    data = open_images(image_root)
    state = torch.get_rng_state()
    list(data.train_dataloader())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_resumed_run_sees_the_epochs_that_it_has_left(image_root: Path, tmp_path: Path, num_workers: int) -> None:
    """Guards: the first epoch after a resume repeated an earlier order and noise (Lightning #21938)."""

    def train(folder: Path, max_epochs: int, ckpt_path: Path | None = None) -> list[torch.Tensor]:
        seed_everything(1, verbose=False)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=max_epochs,
            callbacks=[ModelCheckpoint(folder, filename="last", enable_version_counter=False)],
            use_distributed_sampler=False,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = ImageDataModule(str(image_root), batch_size=8, num_workers=num_workers, image_size=16)
        model = ImageClassifier(3, "small_cnn", dropout=0.0, lr=1e-3, image_size=16)
        trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=False)
        return [value.clone() for value in model.state_dict().values()]

    whole = train(tmp_path / "whole", 3)
    train(tmp_path / "cut", 1)
    resumed = train(tmp_path / "cut", 3, tmp_path / "cut" / "last.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_digits_are_complete_or_absent(tmp_path: Path) -> None:
    """Two jobs that start at once must not read half a dataset or fail on each other."""
    data = DigitsDataModule(str(tmp_path / "digits"))
    data.prepare_data()
    write_digits(data.root)  # the slower of two jobs
    data.prepare_data()
    data.setup("fit")
    sizes = [len(split) for split in (data.train_set, data.val_set, data.test_set)]
    assert sum(sizes) == 1797 and data.num_classes == 10
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    assert len({path.name for path in data.root.glob("*/*/*.png")}) == 1797, "a digit is in two splits"


def test_digits_without_a_place_to_write(tmp_path: Path, one_line: OneLine) -> None:
    """A file in the way, or no permission, would be a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as raised:
        DigitsDataModule(str(tmp_path / "file" / "digits")).prepare_data()
    assert "LAB_DIR" in one_line(raised.value)


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"num_workers": -1}, {"image_size": 0}])
def test_senseless_arguments_are_refused(tmp_path: Path, arguments: dict[str, int]) -> None:
    """They would fail deep inside torch, after the start."""
    with pytest.raises(UserError, match=next(iter(arguments))):
        ImageDataModule(str(tmp_path), **arguments)
