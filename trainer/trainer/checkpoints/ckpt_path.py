"""The checkpoint that a training starts at (`--ckpt_path`), and the line for each way in which it cannot."""

import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule

from trainer.checkpoints.files import TRAINING_STATE, whole_epochs
from trainer.errors import UserError, listed


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
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= TRAINING_STATE:
        raise UserError(
            f"--ckpt_path: {file} is no checkpoint of a training (it lacks the state of the optimizer): "
            "give one that Lightning wrote, such as a job's last.ckpt"
        )
    processed = whole_epochs(checkpoint)
    if max_epochs is not None and 0 <= max_epochs <= processed:
        raise UserError(
            f"--ckpt_path: {file} is of epoch {processed - 1}, so trainer.max_epochs={max_epochs} leaves nothing to "
            "train: raise it"
        )


def does_not_fit(error: Exception, file: str, model: LightningModule) -> str | None:
    """The line for an error that Lightning raises on restoring a checkpoint of another model; None for other errors."""
    if str(error).startswith("loaded state dict "):  # torch.optim
        return f"{file} is of a job with another optimizer or other callbacks ({error})"
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
    said = [f"{what} {listed(sorted(names))}" for what, names in differences.items() if names]
    return f"{file} is a checkpoint of another model than {type(model).__name__}: {'; '.join(said)}"


def _load(file: str) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=False, mmap=True)
    except PermissionError as error:
        raise UserError(f"--ckpt_path: cannot read {file}: {error.strerror}") from error
    except (ImportError, AttributeError) as error:  # what it has pickled
        raise UserError(f"--ckpt_path: {file} needs code that is not here: {error}") from error
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"--ckpt_path: {file} is no checkpoint, or a damaged one") from error
