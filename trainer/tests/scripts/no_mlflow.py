"""Habit 1: `import lightning`, a `__main__` guard, arguments, not a word of MLflow."""

import argparse

import lightning as L
import torch
from torch import nn
from toy import loader


class Net(L.LightningModule):
    def __init__(self, lr: float = 0.1, hidden: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(1) == y).float().mean(), sync_dist=True)

    def on_train_epoch_end(self):
        self.log("own_epoch", float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--devices", default="the script's own")
    arguments = parser.parse_args()
    print(f"the script got --devices {arguments.devices}")
    L.seed_everything(1)
    stopping = L.pytorch.callbacks.EarlyStopping("val_acc", mode="max", patience=50)
    trainer = L.Trainer(max_epochs=3, callbacks=[stopping], enable_progress_bar=False, log_every_n_steps=1)
    trainer.fit(Net(arguments.lr), loader(shuffle=True), loader())


if __name__ == "__main__":
    main()
