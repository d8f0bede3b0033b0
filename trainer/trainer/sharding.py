"""Evaluation that counts every sample exactly once on any number of processes."""

from collections.abc import Iterator

from torch.utils.data import BatchSampler, DistributedSampler, Sampler

from trainer.errors import UserError


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
