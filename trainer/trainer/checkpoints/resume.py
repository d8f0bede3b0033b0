"""Where a job goes on that was cut off: decided by rank 0, the same for all ranks."""

from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Trainer

from trainer.checkpoints import files
from trainer.checkpoints.files import BEST
from trainer.errors import UserError
from trainer.terminal import say


class ResumePoint(NamedTuple):
    """What a job's checkpoints folder holds to go on from."""

    path: Path
    epoch: int
    """The last whole epoch in it (from 0); -1 where it was saved within the first."""
    best: dict[str, Any] | None
    """The state of BestCheckpoint in best.ckpt; None where there is no whole one, or one by another metric."""


def find(trainer: Trainer, folder: Path, best_key: str) -> ResumePoint | None:
    """The checkpoint that all ranks go on from, or None where the job is new. Call it on all ranks.

    Args:
        trainer: The job's. Its process group is set up here; Lightning finds it set up later.
        folder: The job's `checkpoints`.
        best_key: `state_key` of the BestCheckpoint.

    Raises:
        UserError: A rank cannot see the file that rank 0 has found, or it needs code that is not here.
    """
    trainer.strategy.setup_environment()
    found = trainer.strategy.broadcast(_look(folder, best_key) if trainer.is_global_zero else None)
    if found is not None and not found.path.exists():
        raise UserError(f"{found.path} is on rank 0's machine alone: the nodes of a job must share its folder")
    return found


def _look(folder: Path, best_key: str) -> ResumePoint | None:
    newest = files.newest(folder)
    files.set_damaged_aside(folder, newest.path if newest else None)
    if newest is None:
        return None
    best = files.load_whole(folder / BEST)
    if best is None and (folder / BEST).exists():
        say(f"{BEST} is damaged: the best is decided anew, from here on")
        (folder / BEST).unlink()
    return ResumePoint(newest.path, newest.epoch, best.get("callbacks", {}).get(best_key) if best else None)


def require_epochs(point: ResumePoint, max_epochs: int | None) -> None:
    """
    Args:
        point: Where the job goes on.
        max_epochs: The Trainer's. As many as are trained already is right: then there is still a test to be done.

    Raises:
        UserError: It is fewer than are trained already.
    """
    if max_epochs is not None and 0 <= max_epochs <= point.epoch:
        raise UserError(
            f"trainer.max_epochs={max_epochs}, but this job has trained {point.epoch + 1} epochs already: raise it; "
            "--new starts a new run"
        )
