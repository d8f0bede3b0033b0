"""Run under torchrun by test_finetuning.py: staged fine-tuning, cut off after the unfreezing and resumed.

    torchrun --nproc-per-node 2 finetuning_ranks.py OUT_FOLDER TRAIN_BN

Each rank writes rankN.json: a digest of all parameters and buffers, one of the backbone's own weights, and whether the
backbone has gradients, for each epoch.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from trainer.finetuning import StagedFineTuning

UNFREEZE, CUT_OFF, EPOCHS = 1, 3, 5


class Net(LightningModule):
    """The smallest network with a backbone, BatchNorm included, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.head(self.backbone(x)), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)

    def loader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(1)
        data = TensorDataset(torch.randn(32, 4, generator=generator), torch.randint(2, (32,), generator=generator))
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(data, batch_size=4, sampler=DistributedSampler(data, world_size, rank, shuffle=False))

    train_dataloader = loader
    val_dataloader = loader


class Digests(Callback):
    """Notes after each epoch what must agree between the ranks."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, Any]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        linear = pl_module.get_submodule("backbone.0")
        self.epochs.append(
            {
                "epoch": trainer.current_epoch,
                "all": digest(pl_module.state_dict().values()),
                "backbone": digest(linear.parameters()),
                "batchnorm": digest(pl_module.get_submodule("backbone.1").state_dict().values()),
                "trainable": all(parameter.requires_grad for parameter in linear.parameters()),
            }
        )


def digest(tensors: Iterable[Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


def fit(
    folder: Path, max_epochs: int, train_bn: bool = True, resume: bool = False, save_every: int | None = None
) -> tuple[list[dict[str, Any]], Net]:
    """Trains up to `max_epochs`, on as many processes as the environment says."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    seed_everything(1, verbose=False)
    torch.set_num_threads(1)
    digests = Digests()
    staged = StagedFineTuning(unfreeze_at_epoch=UNFREEZE, backbone_lr=1e-3, train_bn=train_bn)
    last = ModelCheckpoint(folder, filename="last", every_n_train_steps=save_every, enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        use_distributed_sampler=False,
        max_epochs=max_epochs,
        callbacks=[staged, digests, last],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Net()
    trainer.fit(model, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=False)
    return digests.epochs, model


if __name__ == "__main__":
    out, train_bn = Path(sys.argv[1]), sys.argv[2] == "True"
    first, _ = fit(out, CUT_OFF, train_bn)
    rest, _ = fit(out, EPOCHS, train_bn, resume=True)
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(first + rest))
    # As the worker does: gloo's threads are not joined at the interpreter's end, which now and then aborts the process.
    sys.stdout.flush()
    os._exit(0)
