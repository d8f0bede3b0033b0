"""Habit 5: imports as in PyTorch Lightning 1.x, a LightningDataModule, a test at the end."""

import pytorch_lightning as pl
import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from toy import loader


class Data(LightningDataModule):
    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return loader(shuffle=True)

    def val_dataloader(self):
        return loader()

    def test_dataloader(self):
        return loader()


class Net(LightningModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(1) == y).float().mean(), sync_dist=True)

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.log("test_acc", (self.net(x).argmax(1) == y).float().mean(), sync_dist=True)

    def on_train_epoch_end(self):
        self.log("own_epoch", float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


seed_everything(1)
best = ModelCheckpoint(monitor="val_acc", mode="max")
stops = [EarlyStopping("val_acc", mode="max"), EarlyStopping("train_loss", patience=7)]
trainer = Trainer(max_epochs=3, callbacks=[best, *stops], enable_progress_bar=False)
trainer.fit(Net(), datamodule=Data())
trainer.test(datamodule=Data(), ckpt_path="best")
print("the version is", pl.__version__)
