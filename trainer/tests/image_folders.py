"""A small dataset as image folders, for the tests of the reference workload, in the trainer's container too."""

from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = {"training": 24, "validation": 23, "evaluation": 17}  # divided by none of 2 and 3 where it is evaluated


def write_images(root: Path) -> Path:
    """Write `root/SPLIT/CLASS/*.png` of three classes; returns `root`."""
    for split, size in SPLITS.items():
        write_split(root / split, size)
    return root


def write_split(folder: Path, size: int, classes: int = 3) -> None:
    for index in range(size):
        label = index % classes
        noise = np.random.RandomState(index).randint(0, 120, (20, 24, 3))
        noise[..., label] += 100
        path = folder / f"class_{label:02d}" / f"{label}_{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.astype(np.uint8)).save(path)
