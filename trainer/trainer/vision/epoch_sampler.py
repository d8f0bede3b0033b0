"""The training order of an epoch: which rank sees which sample, with which noise."""

from collections.abc import Iterator, Sized

import torch
from torch.utils.data import DistributedSampler


class EpochSampler(DistributedSampler):
    """The training order and noise of an epoch, as a function of (seed, epoch) and the rank's share of it.

    Yields `(index, noise)`: the sample and the seed of its augmentation. The noise belongs to the sample and the epoch,
    whichever rank or worker reads it, so runs are repeatable and one global batch is the same on 1 or N processes.
    """

    def __init__(self, dataset: Sized, rank: int, world_size: int, seed: int, first_epoch: int = 0) -> None:
        """
        Args:
            dataset: What is sampled.
            rank: This process's global rank.
            world_size: Number of processes.
            seed: Seed of the job, the same on all ranks.
            first_epoch: The epoch that the first iteration belongs to; not 0 when a job is resumed.
        """
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.epoch = first_epoch

    def set_epoch(self, epoch: int) -> None:
        # Lightning announces the epoch that the checkpoint was saved in, not the one that is resumed
        # (Lightning #21938), and dataloader workers prefetch at once: never go back.
        self.epoch = max(self.epoch, epoch)

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        noise = torch.randint(2**31, (len(self.dataset),), generator=generator).tolist()  # type: ignore[arg-type]
        return ((index, noise[index]) for index in super().__iter__())
