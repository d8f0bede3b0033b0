"""Run under torchrun by test_every_trainer.py: what the callbacks of every job do to Trainers of several processes.

    torchrun --nproc-per-node 2 every_trainer_ranks.py JOB_FOLDER OUT.json

Rank 0 writes, for each case by its name, the error that it ended with or the metrics that it gave.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning, Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from trainer.tracking.job import JOB_DIR_VARIABLE, Job

SIZE = 17  # divided by none of 2 and 3
GENERATOR = torch.Generator().manual_seed(1)
POINTS = torch.randn(SIZE, 4, generator=GENERATOR)
LABELS = torch.randint(2, (SIZE,), generator=GENERATOR)


def loader(train: bool = False) -> DataLoader[Any]:
    return DataLoader(
        TensorDataset(POINTS, LABELS), batch_size=4, drop_last=train
    )  # BatchNorm learns from no single one


class Net(LightningModule):
    """Has buffers, so that DDP broadcasts at every batch: a rank with one batch more would hang."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 2)
        self.counted = MulticlassAccuracy(2, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        right = self.head(self.backbone(batch[0])).argmax(1)
        self.counted.update(right, batch[1])
        self.log("counted", self.counted, on_epoch=True)
        self.log("averaged", (right == batch[1]).float().mean(), sync_dist=True)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class WithLoaders(Net):
    def val_dataloader(self) -> DataLoader[Any]:
        return loader()

    test_dataloader = val_dataloader


class Data(LightningDataModule):
    def val_dataloader(self) -> list[DataLoader[Any]]:
        return [loader()]

    def test_dataloader(self) -> DataLoader[Any]:
        return loader()


class UnfreezesByHand(Callback):
    """What many do without knowing of Lightning #20340."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.get_submodule("backbone").requires_grad_(False)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            pl_module.get_submodule("backbone").requires_grad_(True)


def quiet_trainer(*callbacks: Callback, devices: int | None = None) -> Trainer:
    seed_everything(1, verbose=False)
    world_size = devices or int(os.environ["WORLD_SIZE"])
    return Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        max_epochs=3,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def evaluated(**where: Any) -> dict[str, float]:
    """Metrics of validation and test of the same untrained weights, from loaders given in one of three ways."""
    metrics = {}
    for call in ("validate", "test"):
        judge = quiet_trainer()
        model = WithLoaders() if where.get("model") else Net()
        by_hand = {} if where.get("model") else {"dataloaders": loader()}
        arguments = {"datamodule": Data()} if where.get("data") else by_hand
        getattr(judge, call)(model, **arguments, verbose=False)
        metrics |= {f"{call} {name}": value.item() for name, value in judge.callback_metrics.items()}
    return metrics


CASES: dict[str, Callable[[], Any]] = {
    "BackboneFinetuning": lambda: quiet_trainer(BackboneFinetuning(1)).fit(Net(), loader(train=True)),
    "save_on_exception": lambda: quiet_trainer(ModelCheckpoint(sys.argv[1], save_on_exception=True)).fit(
        Net(), loader(train=True)
    ),
    "by hand": lambda: quiet_trainer(UnfreezesByHand()).fit(Net(), loader(train=True)),
    "as it should be": lambda: quiet_trainer().fit(Net(), loader(train=True), loader()),
    "other devices": lambda: quiet_trainer(devices=int(os.environ["WORLD_SIZE"]) % 2 + 1).fit(
        Net(), loader(train=True)
    ),
    "loaders": evaluated,
    "module": lambda: evaluated(model=True),
    "data module": lambda: evaluated(data=True),
}

if __name__ == "__main__":
    job = Job(Path(sys.argv[1]))
    os.environ[JOB_DIR_VARIABLE] = str(job.folder)
    torch.set_num_threads(1)
    outcomes = {}
    for name, case in CASES.items():
        try:
            outcomes[name] = case()
        except Exception as error:
            outcomes[name] = f"{type(error).__name__}: {error}"
    if os.environ["RANK"] == "0":
        Path(sys.argv[2]).write_text(json.dumps(outcomes))
    # As the worker does: gloo's threads are not joined at the interpreter's end, which now and then aborts the process.
    sys.stdout.flush()
    os._exit(0)
