"""The handwritten digits that scikit-learn ships, as image files: a first run needs no download."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from trainer.errors import UserError
from trainer.vision.data import ImageDataModule


class DigitsDataModule(ImageDataModule):
    """1,797 digits of 8 by 8 pixels in ten classes, written as PNG files on the first use."""

    hint: ClassVar[str] = "delete the folder of the digits, the next start writes it anew"

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        image_size: int = 16,
        mean: Sequence[float] = (0.305, 0.305, 0.305),
        std: Sequence[float] = (0.376, 0.376, 0.376),
        hflip: float = 0.0,
        rotation: float = 10.0,
        jitter: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        seed: int | None = None,
    ) -> None:
        """
        Args:
            root: Folder of the dataset; by default data/digits in the lab's folder.
            batch_size: Samples per device and step.
            num_workers: Processes per device that read and augment; 0 reads in the training process.
            image_size: Side of the square that images are resized and cropped to, in pixels.
            mean: Mean of each colour channel, subtracted; the default is that of the digits.
            std: Standard deviation of each colour channel; the default is that of the digits.
            hflip: Probability that a training image is mirrored; a mirrored digit is no digit.
            rotation: A training image is turned by up to this many degrees either way.
            jitter: How far brightness, contrast, saturation and hue of a training image vary.
            seed: Seed of order and augmentation; by default that of `seed_everything`.
        """
        root = root or str(Path(os.environ.get("LAB_DIR") or "lab") / "data" / "digits")
        super().__init__(root, batch_size, num_workers, image_size, mean, std, hflip, rotation, jitter, seed)

    def prepare_data(self) -> None:
        if self.root.is_dir():
            return
        try:
            write_digits(self.root)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write the digits to {self.root} ({reason}): set LAB_DIR or root") from error


def write_digits(root: Path) -> None:
    """Writes the digits as ROOT/{training,validation,evaluation}/class_NN/NNNN.png, 70:15:15 within each class.

    The folder appears complete or not at all, also when several jobs write it at once.
    """
    from sklearn.datasets import load_digits  # takes seconds, needed once

    digits = load_digits()
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as temporary:
        tree = Path(temporary) / root.name
        for label in range(10):
            members = np.random.RandomState(label).permutation(np.flatnonzero(digits.target == label))
            cuts = [int(len(members) * 0.70), int(len(members) * 0.85)]
            for split, part in zip(DigitsDataModule.splits, np.split(members, cuts), strict=True):
                folder = tree / split / f"class_{label:02d}"
                folder.mkdir(parents=True)
                for index in part:
                    pixels = (digits.images[index] * 255 / 16).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / f"{index:04d}.png")
        try:
            tree.rename(root)
        except OSError:
            if not root.is_dir():  # it is there when another job was first
                raise
