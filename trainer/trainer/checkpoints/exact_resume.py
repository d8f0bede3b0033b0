"""What a Lightning checkpoint leaves out, so that a job that was cut off goes on as if it had not been."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from trainer.terminal import say

KEY = "trainer.exact_resume"


class ExactResume(Callback):
    """Keeps three things in every checkpoint and puts them back, and a fourth right, where a job goes on by itself.

    - The random states of all ranks (Python, NumPy, PyTorch, CUDA), on which dropout and shuffling depend: metrics and
      weights are then bit for bit those of an uninterrupted job, on as many processes as before.
    - That the training was to stop: Lightning restores EarlyStopping, but trains one more epoch (`Trainer.fit` sets
      `should_stop` to False; Lightning #8278, closed as "won't fix").
    - What a ReduceLROnPlateau was about to be told: Lightning steps it after the checkpoint of the epoch.
    - Samplers are told their epoch before dataloader workers read from them; Lightning tells them after, so that the
      first epoch has the order of epoch 0 (Lightning #21938).
    """

    def __init__(self) -> None:
        self.resumed = False
        """Whether this job goes on by itself; one that starts from `--ckpt_path` has its own seed and stops anew."""
        self._kept: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        progress = trainer.fit_loop.epoch_progress.current
        plateaus = {
            index: trainer.callback_metrics.get(config.monitor)
            for index, config in enumerate(trainer.lr_scheduler_configs)
            if config.reduce_on_plateau
            and config.interval == "epoch"
            and progress.processed == progress.ready  # else Lightning steps it, at the end of the epoch
            and progress.processed % config.frequency == 0
        }
        checkpoint[KEY] = {
            "random_states": _gathered(trainer, _random_state(trainer)),
            "should_stop": trainer.should_stop,
            "plateaus": plateaus,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.resumed:
            self._kept = checkpoint.get(KEY)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not later: the iterator over the training data, which draws the seed of its workers, is made before any epoch
        if self._kept is None:
            return
        trainer.should_stop = self._kept["should_stop"]
        strategy = trainer.strategy
        strategy.process_dataloader = _announcing(strategy.process_dataloader, trainer)  # type: ignore[method-assign]
        states = self._kept["random_states"]
        if len(states) == trainer.world_size:
            _set_random_state(trainer, states[trainer.global_rank])
        elif trainer.is_global_zero:
            say(
                f"this job had {len(states)} process(es) and goes on with {trainer.world_size}: its noise (dropout and "
                "the like) differs from an uninterrupted job's"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for index, value in (self._kept or {}).get("plateaus", {}).items():
            if value is not None:
                pl_module.lr_scheduler_step(trainer.lr_scheduler_configs[index].scheduler, value)
        self._kept = None
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        vars(trainer.strategy).pop("process_dataloader", None)


def _announcing(process_dataloader: Callable[[Any], Any], trainer: Trainer) -> Callable[[Any], Any]:
    """`Strategy.process_dataloader`, which Lightning calls for each loader before it is read, with `set_epoch`."""

    def process(loader: Any) -> Any:
        loader = process_dataloader(loader)
        for sampler in (getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
            for one in (sampler, getattr(sampler, "sampler", None)):
                if trainer.training and callable(set_epoch := getattr(one, "set_epoch", None)):
                    set_epoch(trainer.fit_loop.epoch_progress.current.processed)
        return loader

    return process


def _random_state(trainer: Trainer) -> dict[str, Any]:
    on_gpu = trainer.strategy.root_device.type == "cuda"
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if on_gpu else None,
    }


def _set_random_state(trainer: Trainer, state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and trainer.strategy.root_device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"])


def _gathered(trainer: Trainer, mine: Any) -> list[Any]:
    """One of each rank, on all ranks: Lightning asks every rank for a checkpoint, and rank 0 writes it."""
    if trainer.world_size == 1:
        return [mine]
    every: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(every, mine)
    return every
