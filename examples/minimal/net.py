"""A network that learns whether a point lies inside a circle: the smallest project to copy."""

import torch
from lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    def __init__(self, width: int = 32, lr: float = 0.01) -> None:
        """
        Args:
            width: Number of hidden units.
            lr: Learning rate.
        """
        super().__init__()
        self.lr = lr
        self.layers = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))
        # What the best model is logged with: its signature is taken from it.
        self.example_input_array = torch.zeros(2, 2)

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(points)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step("train", batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step("test", batch)

    def _step(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        points, inside = batch
        logits = self(points)
        loss = nn.functional.cross_entropy(logits, inside)
        accuracy = (logits.argmax(1) == inside).float().mean()
        # sync_dist: the mean over all processes. val_loss decides which checkpoint is the best.
        self.log(f"{stage}_loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(points))
        self.log(f"{stage}_acc", accuracy, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(points))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Points(LightningDataModule):
    def __init__(self, size: int = 1000, batch_size: int = 50) -> None:
        """
        Args:
            size: Number of points to train on; a quarter as many are validated, and tested.
            batch_size: Points per device and step.
        """
        super().__init__()
        self.batch_size = batch_size
        self.train_set, self.val_set, self.test_set = (
            _points(count, seed) for seed, count in enumerate((size, size // 4, size // 4))
        )

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test_set, self.batch_size)


def _points(count: int, seed: int) -> TensorDataset:
    points = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return TensorDataset(points, (points.norm(dim=1) < 0.8).long())
