"""Image folders on disk as datasets. Imports no Lightning, since every DataLoader worker imports it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from trainer.errors import UserError


def load_image(path: str) -> Image.Image:
    """Reads one image as RGB."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for files that are no (whole) image
        reason = " ".join(str(error).replace(repr(path), "").split())
        raise UserError(f"broken image {path} ({reason}): replace or delete this file") from error


def open_split(root: Path, split: str, transform: Callable[[Image.Image], torch.Tensor], hint: str) -> ImageFolder:
    """Opens `root/split/CLASS/*` as a dataset.

    Args:
        root: Folder of the dataset.
        split: Name of the folder of the split.
        transform: Makes a tensor of an image.
        hint: What the user can do when it is not there.
    """
    folder = root / split
    if not folder.is_dir():
        missing = folder if root.is_dir() else root
        raise UserError(f"no dataset at {missing} (expected {folder}/CLASS/*.jpg or *.png): {hint}")
    try:
        return ImageFolder(str(folder), transform=transform, loader=load_image)
    except FileNotFoundError as error:  # no class folder, or class folders without an image
        reason = str(error).partition(". Supported")[0].rstrip(".")
        raise UserError(f"no images in {folder} ({reason}): {hint}") from error


class SeededDataset(Dataset[tuple[torch.Tensor, int]]):
    """A dataset whose random transforms depend on nothing but the seed that the sampler sends along."""

    def __init__(self, dataset: ImageFolder) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int] | int) -> tuple[Any, Any]:
        # a plain index comes from Lightning's `overfit_batches`, which swaps the sampler
        index, noise = item if isinstance(item, tuple) else (item, 0)
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(noise)  # torch.manual_seed would touch the GPU's generator too
        try:
            return self.dataset[index]
        finally:
            torch.set_rng_state(state)
