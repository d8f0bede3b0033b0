"""Progress as readable lines, for where there is no terminal: `docker compose logs`, a file, a CI."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar


class ProgressLines(ProgressBar):
    """One line an epoch with its metrics and seconds, and one every `every_seconds` within a long epoch."""

    def __init__(self, every_seconds: float = 30.0) -> None:
        super().__init__()
        self._every_seconds = every_seconds
        self._enabled = True
        self._epoch_start = self._last_line = time.monotonic()

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._enabled:
            print(*args, flush=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_start = self._last_line = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now - self._last_line >= self._every_seconds:
            self._last_line = now
            speed = (batch_idx + 1) / (now - self._epoch_start)
            self.print(f"{_epoch(trainer)}: step {batch_idx + 1}/{self.total_train_batches}, {speed:.1f} steps/s")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = "  ".join(f"{name} {float(value):.4g}" for name, value in trainer.callback_metrics.items())
        self.print(f"{_epoch(trainer)}: {metrics}  ({time.monotonic() - self._epoch_start:.1f} s)")


def progress(trainer: dict[str, Any]) -> list[ProgressBar]:
    """Lines where standard output is no terminal; nothing to add where it is, Lightning's own bar is live there.

    Args:
        trainer: The Trainer's arguments: with a progress bar of the user's own, or none wanted, nothing is added.
    """
    callbacks = trainer["callbacks"] if isinstance(trainer["callbacks"], list) else [trainer["callbacks"]]
    unwanted = trainer["enable_progress_bar"] is False or any(isinstance(one, ProgressBar) for one in callbacks)
    return [] if unwanted or sys.stdout.isatty() else [ProgressLines()]


def _epoch(trainer: Trainer) -> str:
    # counted from 0 to the last, as Lightning's bar and the run's steps are
    return f"epoch {trainer.current_epoch}/{trainer.max_epochs - 1}"
