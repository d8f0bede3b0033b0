"""A callback for the benches: says when the first and the last training step of this process were done."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StepTimes(Callback):
    """Prints `bench: first_step T` and `bench: last_step T`, T in seconds since the epoch."""

    def __init__(self) -> None:
        self._last = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        first, self._last = not self._last, time.time()
        if first and trainer.is_global_zero:
            print(f"bench: first_step {self._last}", flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            print(f"bench: last_step {self._last}", flush=True)
