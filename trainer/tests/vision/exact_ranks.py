"""Run under torchrun by test_exact.py: trains one epoch, validates and tests; rank 0 writes the metrics.

torchrun --nproc-per-node 2 exact_ranks.py IMAGES OUT.json BATCH_SIZE
"""

import json
import os
import sys
from pathlib import Path

import torch
from lightning import Trainer, seed_everything
from torch import nn

from trainer.vision import ImageClassifier, ImageDataModule


class NoBatchStatistics(ImageClassifier):
    """Without BatchNorm and dropout the loss of a global batch does not depend on how it is split."""

    def __init__(self) -> None:
        super().__init__(num_classes=3, architecture="small_cnn", dropout=0.0, lr=1e-2, image_size=16)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 3)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)  # Adam's first steps turn rounding errors into whole steps


def run(images: Path, batch_size: int) -> tuple[dict[str, float], ImageClassifier]:
    """Metrics and model of one epoch on as many processes as the environment says."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    seed_everything(7, verbose=False)
    torch.set_num_threads(1)
    data = ImageDataModule(str(images), batch_size=batch_size, num_workers=0, image_size=16)
    trainer = Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        use_distributed_sampler=False,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = NoBatchStatistics()
    trainer.fit(model, data)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    trainer.test(model, data, verbose=False)
    return metrics | {name: value.item() for name, value in trainer.callback_metrics.items()}, model


if __name__ == "__main__":
    result, _ = run(Path(sys.argv[1]), int(sys.argv[3]))
    if os.environ["RANK"] == "0":
        Path(sys.argv[2]).write_text(json.dumps(result))
    # As the worker does: gloo's threads are not joined at the interpreter's end, which now and then aborts the process.
    sys.stdout.flush()
    os._exit(0)
