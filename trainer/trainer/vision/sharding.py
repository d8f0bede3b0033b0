"""Which rank sees which sample: the training order of an epoch, and evaluation that counts every sample once."""

from collections.abc import Iterator, Sized

import torch
from torch.utils.data import BatchSampler, DistributedSampler, Sampler

from trainer.errors import UserError


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


class ShardedBatchSampler(BatchSampler):
    """Splits what `sampler` yields over the ranks: nothing padded, nothing dropped, equally many batches everywhere.

    DistributedSampler repeats samples until the ranks are even, which makes metrics wrong. Plainly uneven shards hang:
    Lightning sends validation steps through DistributedDataParallel, which broadcasts buffers at each batch. So every
    rank gets the number of batches that the largest shard needs, of nearly equal size.
    """

    def __init__(self, sampler: Sampler[int], batch_size: int, rank: int, world_size: int) -> None:
        """
        Args:
            sampler: Yields all indices of the dataset, in the same order on all ranks.
            batch_size: The largest batch.
            rank: This process's global rank.
            world_size: Number of processes.
        """
        if isinstance(sampler, DistributedSampler):  # what Lightning injects when it was not told to leave it
            raise UserError("this data module shards by itself: set `use_distributed_sampler: false` under `trainer:`")
        super().__init__(sampler, batch_size, drop_last=False)
        size = len(sampler)  # type: ignore[arg-type]
        if size < world_size:
            raise UserError(
                f"{size} samples to evaluate cannot be split over {world_size} processes: use fewer devices"
            )
        self.rank = rank
        self.world_size = world_size
        smallest, largest = size // world_size, -(-size // world_size)
        self.batches = min(
            -(-largest // batch_size), smallest
        )  # with batch_size 1 the larger shards hold one batch of 2

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        shard = list(self.sampler)[self.rank :: self.world_size]
        small, larger = divmod(len(shard), self.batches)
        start = 0
        for batch in range(self.batches):
            end = start + small + (batch < larger)
            yield shard[start:end]
            start = end
