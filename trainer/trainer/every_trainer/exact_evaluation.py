"""Validation and test that count every sample once, also where Lightning would have to pad the last batches."""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, SequentialSampler

from trainer.sharding import ShardedBatchSampler
from trainer.terminal import say
from trainer.tracking import client

EVALUATION = ("val_dataloader", "test_dataloader")


class ExactEvaluation:
    """Shards plain validation and test loaders without padding; says so where a loader is padded all the same.

    Lightning's DistributedSampler repeats samples until every rank has equally many, so that metrics on several
    processes are those of another dataset. A loader is plain if it reads a map-style dataset in order in batches of
    `batch_size`. Others keep the sampler that they have.

    Shards of unequal size then meet a second error, which is mended here too: `self.log(…, sync_dist=True)` averages
    the number of samples in whole numbers (Lightning #21859).
    """

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any]] = []
        self._said: set[str] = set()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if trainer.world_size == 1:
            return
        self._replace(trainer.strategy, "reduce", _exact_reduce(trainer.strategy.reduce))
        for owner in (trainer.datamodule, pl_module):
            for hook in EVALUATION:
                if owner is not None and _overrides(owner, hook):
                    self._replace(owner, hook, _unpadded_hook(getattr(owner, hook), trainer.world_size))
        # Loaders that were handed to `trainer.fit` or `trainer.test`: there is no public place to find them before
        # Lightning has padded them (Lightning 2.6.6).
        for loop in (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop):
            if not loop._data_source.is_module():
                loop._data_source.instance = _unpadded(loop._data_source.instance, trainer.world_size)

    def _replace(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        self._replaced.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, function)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        for owner, name, original in reversed(self._replaced):
            if original is None:  # it was its class's
                delattr(owner, name)
            else:
                setattr(owner, name, original)
        self._replaced.clear()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._say_what_is_padded(trainer, "validation", trainer.val_dataloaders)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._say_what_is_padded(trainer, "test", trainer.test_dataloaders)

    def _say_what_is_padded(self, trainer: Any, stage: str, loaders: Any) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or stage in self._said:
            return
        if trainer.world_size > 1 and any(isinstance(one.dataset, IterableDataset) for one in _loaders(loaders)):
            self._said.add(stage)
            say(
                f"{stage} reads an IterableDataset: its metrics count every sample {trainer.world_size} times, unless "
                "the dataset gives each process a share of its own",
            )
        if trainer.world_size > 1 and any(getattr(one.batch_sampler, "drop_last", False) for one in _loaders(loaders)):
            self._said.add(stage)
            say(f"{stage} drops the last samples of each process (drop_last): its metrics depend on their number")
        # Lightning puts its sampler into a batch sampler of the user's own, where there is one.
        samplers = [getattr(loader.batch_sampler, "sampler", loader.sampler) for loader in _loaders(loaders)]
        padded = sum(
            sampler.total_size - len(sampler.dataset) for sampler in samplers if isinstance(sampler, DistributedSampler)
        )
        if padded > 0:
            self._said.add(stage)
            client.set_tag(f"padded_samples.{stage}", str(padded))
            say(
                f"{stage} counts {padded} samples twice, since its sampler pads them for {trainer.world_size} "
                "processes: its metrics are not exact. Use a plain DataLoader (no sampler of its own), or --devices 1",
            )


class _UnpaddedBatchSampler(ShardedBatchSampler):
    """Takes the arguments of torch's BatchSampler, in which Lightning replaces the sampler by a DistributedSampler."""

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool = False) -> None:
        rank, world_size = 0, 1
        if isinstance(sampler, DistributedSampler):
            rank, world_size = sampler.rank, sampler.num_replicas
            sampler = SequentialSampler(sampler.dataset)  # type: ignore[arg-type]
        super().__init__(sampler, batch_size, rank, world_size)


def _exact_reduce(reduce: Callable[..., Any]) -> Callable[..., Any]:
    """`Strategy.reduce` without its mean of whole numbers, which is rounded down (Lightning #21859)."""

    @functools.wraps(reduce)
    def exact(tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        if isinstance(tensor, Tensor) and not tensor.is_floating_point() and reduce_op in ("mean", "avg"):
            tensor = tensor.double()
        return reduce(tensor, group, reduce_op)

    return exact


def _unpadded_hook(hook: Callable[[], Any], world_size: int) -> Callable[[], Any]:
    @functools.wraps(hook)
    def unpadded() -> Any:
        return _unpadded(hook(), world_size)

    return unpadded


def _unpadded(loaders: Any, world_size: int) -> Any:
    """The same loaders, in the same collection, each plain one rebuilt so that what Lightning injects pads nothing."""
    if isinstance(loaders, list | tuple):
        return type(loaders)(_unpadded(loader, world_size) for loader in loaders)
    if isinstance(loaders, dict):
        return {name: _unpadded(loader, world_size) for name, loader in loaders.items()}
    if not _is_plain(loaders) or len(loaders.dataset) < world_size:
        return loaders
    return DataLoader(
        loaders.dataset,
        batch_sampler=_UnpaddedBatchSampler(loaders.batch_sampler.sampler, loaders.batch_sampler.batch_size),
        num_workers=loaders.num_workers,
        collate_fn=loaders.collate_fn,
        pin_memory=loaders.pin_memory,
        timeout=loaders.timeout,
        worker_init_fn=loaders.worker_init_fn,
        multiprocessing_context=loaders.multiprocessing_context,
        generator=loaders.generator,
        prefetch_factor=loaders.prefetch_factor,
        persistent_workers=loaders.persistent_workers,
    )


def _is_plain(loader: Any) -> bool:
    if type(loader) is not DataLoader or type(loader.batch_sampler) is not BatchSampler:
        return False
    # Not the loader's own attributes: torch leaves them at their defaults where it is given a batch sampler.
    sampler = loader.batch_sampler.sampler
    reads_all = type(sampler) is SequentialSampler and sampler.data_source is loader.dataset
    return reads_all and not loader.batch_sampler.drop_last


def _overrides(owner: Any, hook: str) -> bool:
    """Whether the user's class, or the instance itself (LightningDataModule.from_datasets), brings this hook."""
    lightning = ("lightning.", "pytorch_lightning.")
    return hook in vars(owner) or any(
        hook in vars(cls) for cls in type(owner).__mro__ if not cls.__module__.startswith(lightning)
    )


def _loaders(collection: Any) -> list[DataLoader[Any]]:
    if isinstance(collection, dict):
        collection = list(collection.values())
    if isinstance(collection, list | tuple):
        return [loader for entry in collection for loader in _loaders(entry)]
    return [collection] if isinstance(collection, DataLoader) else []
