"""Small image folders for the tests of the reference workload."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SPLITS = {"training": 24, "validation": 23, "evaluation": 17}  # divided by none of 2 and 3 where it is evaluated


def write_split(folder: Path, size: int, classes: int = 3) -> None:
    for index in range(size):
        label = index % classes
        noise = np.random.RandomState(index).randint(0, 120, (20, 24, 3))
        noise[..., label] += 100
        path = folder / f"class_{label:02d}" / f"{label}_{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.astype(np.uint8)).save(path)


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """A dataset of three classes."""
    for split, size in SPLITS.items():
        write_split(tmp_path / "images" / split, size)
    return tmp_path / "images"


@pytest.fixture
def one_line() -> Callable[[BaseException], str]:
    """The message of an error, after a check that it is one line."""

    def check(error: BaseException) -> str:
        message = str(error)
        assert message and "\n" not in message
        return message

    return check
