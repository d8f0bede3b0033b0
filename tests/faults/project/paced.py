"""A real training of a few hundred parameters with dropout, whose epochs take as long as a test wants."""

import time

import torch
from lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Paced(LightningModule):
    def __init__(self, pause: float = 0.04, best_epoch: int = 2) -> None:
        """
        Args:
            pause: Seconds that each step waits, as one that waits for a GPU does.
            best_epoch: Up to here the validation loss falls, from here on it grows, as in a training that overfits.
        """
        super().__init__()
        self.pause = pause
        self.best_epoch = best_epoch
        # Dropout: a resume that draws other random numbers gives other values.
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 2))
        self.example_input_array = torch.zeros(2, 2)

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(points)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        time.sleep(self.pause)
        return self._step("train", batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step("val", batch, penalty=abs(self.current_epoch - self.best_epoch))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step("test", batch)

    def _step(self, stage: str, batch: tuple[Tensor, Tensor], penalty: float = 0.0) -> Tensor:
        points, inside = batch
        logits = self(points)
        loss = nn.functional.cross_entropy(logits, inside)
        accuracy = (logits.argmax(1) == inside).float().mean()
        figures = {f"{stage}_loss": loss + penalty, f"{stage}_acc": accuracy}
        self.log_dict(figures, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(points))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Points(LightningDataModule):
    def __init__(self, steps: int = 12) -> None:
        """
        Args:
            steps: Of an epoch, on one device.
        """
        super().__init__()
        self.batch_size = 16
        sizes = (steps * self.batch_size, 64, 64)
        self.train_set, self.val_set, self.test_set = (_points(size, seed) for seed, size in enumerate(sizes))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test_set, self.batch_size)


def _points(count: int, seed: int) -> TensorDataset:
    points = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return TensorDataset(points, (points.norm(dim=1) < 0.8).long())
