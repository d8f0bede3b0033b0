"""A module that draws on every source of noise, and data without samplers of its own; for the tests of resuming."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


class Noisy(LightningModule):
    """Dropout, and noise from Python and NumPy in each step; its learning rate falls when val_loss does not."""

    def __init__(self, lr: float = 0.01, plateau: bool = False, width: int = 8) -> None:
        super().__init__()
        self.lr = lr
        self.plateau = plateau
        self.layers = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.5), nn.Linear(width, 1))
        self.example_input_array = torch.zeros(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self(x * random.random() + np.random.rand()), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self(batch[0]), batch[1]), sync_dist=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test_loss", nn.functional.mse_loss(self(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        if not self.plateau:
            return optimizer
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


class Data(LightningDataModule):
    """Shuffled by a plain DataLoader; Lightning injects a sampler where there are several processes."""

    def __init__(self, num_workers: int = 0) -> None:
        super().__init__()
        self.num_workers = num_workers

    def _set(self) -> Dataset[Any]:
        generator = torch.Generator().manual_seed(1)
        return TensorDataset(torch.randn(16, 4, generator=generator), torch.randn(16, 1, generator=generator))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._set(), batch_size=2, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._set(), batch_size=4)

    test_dataloader = val_dataloader


class Dies(Callback):
    """Kills rank 0, once at each of some moments.

    Args:
        moments: `before 3`: in epoch 3, when last.ckpt is written but not yet in place; `after 3`: when it is; `test`:
            when the training is over.
        marks: A folder where it notes that it has done so.
    """

    def __init__(self, moments: list[str], marks: str) -> None:
        self.moments = moments
        self.marks = Path(marks)
        self._replace = os.replace

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def replace(source: Any, target: Any) -> None:
            is_last = Path(target).name == "last.ckpt"
            if is_last:
                self._die(trainer, f"before {trainer.current_epoch}")
            self._replace(source, target)
            if is_last:
                self._die(trainer, f"after {trainer.current_epoch}")

        os.replace = replace  # type: ignore[assignment]

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._die(trainer, "test")

    def _die(self, trainer: Trainer, moment: str) -> None:
        mark = self.marks / moment.replace(" ", "-")
        if trainer.is_global_zero and moment in self.moments and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
