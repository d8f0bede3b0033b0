"""The two checkpoints that every job keeps, the best by the monitored metric and the last; and those it starts at."""

import pickle
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.model_helpers import is_overridden

from trainer.errors import UserError
from trainer.workspace import did_you_mean

LAST = "last.ckpt"


class BestCheckpoint(ModelCheckpoint):
    """best.ckpt: of the epoch whose monitored metric was best; of the last one where it was never measured.

    A class of its own, so that a user's ModelCheckpoint can neither collide with its state nor, from the module's
    `configure_callbacks`, take its place.
    """

    def __init__(self, folder: Path, monitor: str | None, mode: str, every_epoch: bool) -> None:
        """
        Args:
            folder: Gets best.ckpt.
            monitor: Metric that decides, or None for the last epoch.
            mode: "min" or "max".
            every_epoch: Decide at the end of an epoch, when training metrics are those of the epoch too, and not at
                the end of a validation.
        """
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_on_train_epoch_end=True if every_epoch else None,
            enable_version_counter=False,
        )
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated |= not trainer.sanity_checking
        if self._measured(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._measured(trainer):
            super().on_train_epoch_end(trainer, pl_module)
        elif self._validated or not is_overridden("validation_step", pl_module):
            known = sorted(trainer.callback_metrics)
            raise UserError(
                f"--monitor is {self.monitor}, but no such metric is logged{did_you_mean(str(self.monitor), known)} "
                f"({_listed(known, len(known))})"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self.best_model_path or trainer.fast_dev_run or trainer.global_step == 0:
            return
        self.best_model_path = self.format_checkpoint_name({})
        if trainer.is_global_zero:
            # A copy, since a checkpoint that is saved here belongs to the epoch after the last one.
            shutil.copyfile(Path(self.best_model_path).with_name(LAST), self.best_model_path)
            print(f"{self.monitor} was never measured, so the last epoch counts as the best", flush=True)
        trainer.strategy.barrier("best.ckpt")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Of another job, Lightning would take over the path of its best checkpoint: this job has its own.
        if state_dict.get("dirpath") == self.dirpath:
            super().load_state_dict(state_dict)

    def _measured(self, trainer: Trainer) -> bool:
        return self.monitor is None or self.monitor in trainer.callback_metrics


class LastCheckpoint(ModelCheckpoint):
    """last.ckpt: of the last epoch, whatever its metrics.

    `ModelCheckpoint(save_last=True, monitor=…)` is none: it writes last.ckpt only when the monitored metric improves.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder, filename=Path(LAST).stem, save_on_train_epoch_end=True, enable_version_counter=False
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("dirpath") == self.dirpath:
            super().load_state_dict(state_dict)


def require_kept(trainer: dict[str, Any]) -> None:
    """
    Args:
        trainer: The Trainer's configuration.

    Raises:
        UserError: It would lose the two checkpoints.
    """
    for name, loses in (("enable_checkpointing", False), ("barebones", True)):
        if trainer[name] is loses:
            raise UserError(
                f"trainer.{name} is {str(loses).lower()}, but every job keeps its best and its last checkpoint: "
                "take it out of the configuration"
            )


def require_start(file: str, max_epochs: int | None) -> None:
    """
    Args:
        file: A checkpoint to start at. It is unpickled, so only what you trust.
        max_epochs: The Trainer's.

    Raises:
        UserError: There is none, or it leaves nothing to train.
    """
    if not Path(file).is_file():
        raise UserError(f"--ckpt_path: there is no file {file}")
    checkpoint = _load(file)
    if not isinstance(checkpoint, dict) or not {"state_dict", "optimizer_states", "loops"} <= set(checkpoint):
        raise UserError(
            f"--ckpt_path: {file} is no checkpoint of a training (it lacks the state of the optimizer): "
            "give one that Lightning wrote, such as a job's last.ckpt"
        )
    # what Lightning itself compares; `epoch` may be one that is half done
    processed = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if max_epochs is not None and 0 <= max_epochs <= processed:
        raise UserError(
            f"--ckpt_path: {file} is of epoch {processed - 1}, so trainer.max_epochs={max_epochs} leaves nothing to "
            "train: raise it"
        )


def does_not_fit(error: Exception, file: str, model: LightningModule) -> str | None:
    """The line for an error that Lightning raises on restoring a checkpoint of another model; None for other errors."""
    if str(error).startswith("loaded state dict "):  # torch.optim
        return f"--ckpt_path: {file} is of a job with another optimizer or other callbacks ({error})"
    if not str(error).startswith("Error(s) in loading state_dict "):
        return None
    theirs = {name: tuple(value.shape) for name, value in _load(file)["state_dict"].items()}
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    shapes = [
        f"{name} is {theirs[name]}, not {ours[name]}" for name in ours.keys() & theirs if ours[name] != theirs[name]
    ]
    differences = {
        "it lacks": ours.keys() - theirs.keys(),
        "it has besides": theirs.keys() - ours.keys(),
        "in other shapes": shapes,
    }
    said = [f"{what} {_listed(sorted(names))}" for what, names in differences.items() if names]
    return f"--ckpt_path: {file} is a checkpoint of another model than {type(model).__name__}: {'; '.join(said)}"


def _load(file: str) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=False, mmap=True)
    except PermissionError as error:
        raise UserError(f"--ckpt_path: cannot read {file}: {error.strerror}") from error
    except (ImportError, AttributeError) as error:  # what it has pickled
        raise UserError(f"--ckpt_path: {file} needs code that is not here: {error}") from error
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"--ckpt_path: {file} is no checkpoint, or a damaged one") from error


def _listed(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
