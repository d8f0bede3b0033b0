"""Food-11: 16,643 photographs of food in eleven classes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from trainer.vision.data import ImageDataModule


class Food11DataModule(ImageDataModule):
    """Food-11 as `trainer data food11 --to ROOT` lays it out."""

    hint: ClassVar[str] = (
        "get Food-11 with `trainer data food11 --to DIR` (or `--archive ZIP` for a copy that you have) "
        "and set FOOD11_DATA_DIR=DIR"
    )

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 32,
        num_workers: int = 2,
        image_size: int = 224,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        hflip: float = 0.5,
        rotation: float = 15.0,
        jitter: Sequence[float] = (0.2, 0.2, 0.2, 0.1),
        seed: int | None = None,
    ) -> None:
        """
        Args:
            root: Folder of the dataset; by default FOOD11_DATA_DIR, else data/food11 in the lab's folder.
            batch_size: Samples per device and step.
            num_workers: Processes per device that read and augment; 0 reads in the training process.
            image_size: Side of the square that images are resized and cropped to, in pixels.
            mean: Mean of each colour channel, subtracted; the default is ImageNet's.
            std: Standard deviation of each colour channel; the default is ImageNet's.
            hflip: Probability that a training image is mirrored.
            rotation: A training image is turned by up to this many degrees either way.
            jitter: How far brightness, contrast, saturation and hue of a training image vary.
            seed: Seed of order and augmentation; by default that of `seed_everything`.
        """
        default = Path(os.environ.get("LAB_DIR") or "lab") / "data" / "food11"
        root = root or os.environ.get("FOOD11_DATA_DIR") or str(default)
        super().__init__(root, batch_size, num_workers, image_size, mean, std, hflip, rotation, jitter, seed)
