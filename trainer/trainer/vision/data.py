"""Folders of images, one per class, as a LightningDataModule that is exact on any number of processes."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from torchvision.transforms import v2

from trainer.errors import UserError
from trainer.sharding import ShardedBatchSampler
from trainer.vision.epoch_sampler import EpochSampler
from trainer.vision.images import SeededDataset, open_split


class ImageDataModule(LightningDataModule):
    """Images under `ROOT/{training,validation,evaluation}/CLASS/`, resized, augmented for training, normalised.

    It brings its own samplers: set `use_distributed_sampler: false` under `trainer:`. Training order and augmentation
    are functions of (seed, epoch, sample), so a run repeats bit for bit and resumes where it was. Validation and test
    count every sample exactly once on any number of processes.
    """

    splits: ClassVar[tuple[str, str, str]] = ("training", "validation", "evaluation")
    hint: ClassVar[str] = "point `data.init_args.root` to a folder that has it"

    def __init__(
        self,
        root: str,
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
            root: Folder of the dataset.
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
        super().__init__()
        if batch_size < 1 or image_size < 1 or num_workers < 0:
            raise UserError("data: batch_size and image_size must be at least 1, num_workers at least 0")
        if len(jitter) != 4:
            raise UserError("data: jitter takes four numbers: brightness, contrast, saturation, hue")
        self.root = Path(root).expanduser()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.image_size = image_size
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed  # set by seed_everything
        self.classes: list[str] = []

        crop = [v2.Resize(image_size), v2.CenterCrop(image_size)]
        augment: list[Any] = []
        if hflip:
            augment.append(v2.RandomHorizontalFlip(hflip))
        if rotation:
            augment.append(v2.RandomRotation(rotation))
        if any(jitter):
            brightness, contrast, saturation, hue = jitter
            augment.append(v2.ColorJitter(brightness, contrast, saturation, hue))
        to_tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
        self.train_transform: Callable[[Image.Image], torch.Tensor] = v2.Compose([*crop, *augment, *to_tensor])
        self.eval_transform: Callable[[Image.Image], torch.Tensor] = v2.Compose([*crop, *to_tensor])

    def setup(self, stage: str) -> None:
        training, validation, evaluation = self.splits
        # all three at once: a split that is missing must not show only after hours of training
        self.train_set = open_split(self.root, training, self.train_transform, self.hint)
        self.val_set = open_split(self.root, validation, self.eval_transform, self.hint)
        self.test_set = open_split(self.root, evaluation, self.eval_transform, self.hint)
        self.classes = self.train_set.classes
        for split in (self.val_set, self.test_set):
            if differ := sorted(set(split.classes) ^ set(self.classes)):
                raise UserError(
                    f"classes in {split.root} and {self.train_set.root} differ ({', '.join(differ[:5])}): "
                    "every split needs the same class folders"
                )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def train_dataloader(self) -> DataLoader[Any]:
        dataset = SeededDataset(self.train_set)
        sampler = EpochSampler(dataset, *self._rank_of_world(), self.seed, self._next_epoch())
        return self._loader(dataset, sampler=sampler, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._eval_loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._eval_loader(self.test_set)

    def _eval_loader(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        order = SequentialSampler(dataset)  # type: ignore[arg-type]
        return self._loader(dataset, batch_sampler=ShardedBatchSampler(order, self.batch_size, *self._rank_of_world()))

    def _loader(self, dataset: Dataset[Any], **kwargs: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context=_worker_context() if self.num_workers else None,
            generator=torch.Generator(),  # starting an epoch then draws nothing from the generator that dropout uses
            **kwargs,
        )

    def _rank_of_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _next_epoch(self) -> int:
        """The epoch that the training loader is built for: after a resume Lightning still counts the finished one."""
        if self.trainer is None:
            return 0
        loop = self.trainer.fit_loop
        progress = loop.epoch_progress.current
        finished = progress.ready > progress.processed and loop.epoch_loop.batch_progress.is_last_batch
        return progress.processed + finished


def _worker_context() -> BaseContext:
    """How DataLoader workers start: not forked from this process, whose gloo and CUDA threads a fork would hang."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["trainer.vision.images", "torchvision.transforms.v2"]
    )  # imported once, not per epoch
    return context
