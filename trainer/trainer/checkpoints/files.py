"""Which of a job's checkpoint files is the newest whole one. Imports no Lightning, and PyTorch only when it is used."""

import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from trainer.errors import UserError
from trainer.terminal import say

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
NEWEST_FIRST = (LAST, PREVIOUS, BEST)
TRAINING_STATE = {"state_dict", "optimizer_states", "loops"}
"""What a checkpoint must hold for a training to go on from it."""


class Newest(NamedTuple):
    """Where a job that was cut off goes on."""

    path: Path
    epoch: int
    """The last whole epoch in it (from 0); -1 where it was saved within the first."""


def newest(folder: Path) -> Newest | None:
    """The newest checkpoint of a job that is whole and holds a training's state; a damaged one is said and skipped.

    It is read twice, once for its checksums, and unpickled: only the job's own folder, which the job has written.

    Args:
        folder: The job's `checkpoints`, read by one process: the other ranks are told (resume.py).

    Raises:
        UserError: One is pickled with code that is not here any more, or is a folder.
    """
    skipped: list[str] = []
    for name in NEWEST_FIRST:
        path = folder / name
        if not os.path.lexists(path):
            continue
        if path.is_dir():
            raise UserError(
                f"{path} is a sharded checkpoint, a folder, which this job does not go on from by itself: give it with "
                f"--new --ckpt_path {path}"
            )
        checkpoint = load_whole(path)
        if checkpoint is not None and checkpoint.keys() >= TRAINING_STATE:
            found = Newest(path, whole_epochs(checkpoint) - 1)
            if skipped:
                say(f"{' and '.join(skipped)}; going on from {name}, of epoch {found.epoch}")
            return found
        skipped.append(f"{name} {'is damaged' if checkpoint is None else 'holds no state of a training'}")
    if skipped:
        say(f"{' and '.join(skipped)}; there is no other checkpoint, so the training starts anew")
    return None


def any_in(folder: Path) -> bool:
    """Whether a job has written a checkpoint, be it damaged."""
    return any(os.path.lexists(folder / name) for name in NEWEST_FIRST)


def load_whole(path: Path) -> dict[str, Any] | None:
    """The checkpoint in a file, its tensors mapped from there; None where the file is not exactly what was written.

    torch.load notices a file that is cut off, but neither zeros nor a flipped bit in a tensor. torch.save's format is a
    zip archive, with a checksum of each member: https://docs.pytorch.org/docs/stable/notes/serialization.html

    Raises:
        UserError: It is whole, but pickled with code that is not here any more.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        checkpoint = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{path} needs code that is not here: {error}; --new starts a new run") from error
    except Exception:  # zipfile, zlib, pickle and torch raise a dozen kinds on damaged bytes
        return None
    return checkpoint if isinstance(checkpoint, dict) else None


def whole_epochs(checkpoint: dict[str, Any]) -> int:
    """How many epochs are trained in a checkpoint: what Lightning itself compares; its `epoch` may be half done."""
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def set_damaged_aside(folder: Path, good: Path | None) -> None:
    """Rename what `newest` has skipped to `….damaged`, lest the next save keeps it as the previous one.

    Args:
        folder: The job's `checkpoints`.
        good: What `newest` has found.
    """
    for name in NEWEST_FIRST:
        path = folder / name
        if path == good:
            return
        if os.path.lexists(path):
            os.replace(path, path.with_name(f"{name}.damaged"))
