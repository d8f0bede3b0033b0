"""A module whose metrics are what a test says they are; for test_checkpoints.py and test_bad_inputs.py."""

from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Scored(LightningModule):
    """Logs `scores[epoch]` as val_loss and as train_score, and a train_loss that gets less with every step."""

    def __init__(self, scores: list[float], own_checkpoint: bool = False) -> None:
        """
        Args:
            scores: One for each epoch.
            own_checkpoint: Bring a ModelCheckpoint from `configure_callbacks`.
        """
        super().__init__()
        self.scores = scores
        self.own_checkpoint = own_checkpoint
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.weight.sum()
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        self.log("train_score", self.scores[self.current_epoch], on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.scores[self.current_epoch])

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Never called: there is no data to test."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def configure_callbacks(self) -> list[Callback]:
        return [ModelCheckpoint(filename="best")] if self.own_checkpoint else []

    def loader(self) -> DataLoader[Any]:
        return DataLoader(torch.zeros(4, 1), batch_size=2)  # type: ignore[arg-type]

    train_dataloader = loader
    val_dataloader = loader
