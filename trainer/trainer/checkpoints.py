"""The two checkpoints that every job keeps: the best by the monitored metric, and the last."""

from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint


def best_and_last(folder: Path, monitor: str | None, mode: str) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    """Two callbacks, in the order in which they must run: the last checkpoint holds the state of the best one.

    `ModelCheckpoint(save_last=True, monitor=…)` is no way to get both: its last.ckpt is written only when the
    monitored metric improves.

    Args:
        folder: Gets best.ckpt and last.ckpt.
        monitor: Metric that decides, or None where nothing is validated: then the best is the newest.
        mode: "min" or "max".
    """
    best = ModelCheckpoint(
        dirpath=folder, filename="best", monitor=monitor, mode=mode, save_top_k=1, enable_version_counter=False
    )
    last = ModelCheckpoint(
        dirpath=folder, filename="last", monitor=None, save_on_train_epoch_end=True, enable_version_counter=False
    )
    return best, last
