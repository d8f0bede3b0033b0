"""The two checkpoints that every job keeps: the best by the monitored metric, and the last."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.model_helpers import is_overridden

from trainer.checkpoints.files import LAST
from trainer.checkpoints.whole_io import WholeCheckpointIO
from trainer.errors import UserError, did_you_mean, listed
from trainer.whole_file import link_or_copy

ROOM_SECONDS = 60.0


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
        self._on_disk: dict[str, Any] = {}

    def adopt(self, state: dict[str, Any] | None) -> None:
        """Have the state of the best.ckpt that is there restored, instead of the one in the checkpoint to go on from.

        A job that was killed after it wrote best.ckpt goes on from the last.ckpt of the epoch before, which knows the
        score of an older best.ckpt only. And the folder may have been moved since.

        Args:
            state: This callback's, in best.ckpt; None where there is none.
        """
        self._on_disk = self.state_dict()
        if state and state["best_model_path"]:
            path = self.format_checkpoint_name({})
            self._on_disk = {
                **state,
                "dirpath": self.dirpath,
                "best_model_path": path,
                "kth_best_model_path": state["kth_best_model_path"] and path,
                "best_k_models": {path: state["best_model_score"]} if state["best_k_models"] else {},
                "last_model_path": "",
            }

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
                f"({listed(known, len(known))})"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self.settle(trainer)

    def settle(self, trainer: Trainer) -> None:
        """See to it that both checkpoints are there. Call it on all ranks, once or twice.

        On a full disk they wait `ROOM_SECONDS` for room. Where no epoch was measured the last one is the best.

        Raises:
            OSError: There is no room.
        """
        if trainer.is_global_zero and isinstance(trainer.strategy.checkpoint_io, WholeCheckpointIO):
            trainer.strategy.checkpoint_io.write_out(ROOM_SECONDS)
        if self.best_model_path or trainer.fast_dev_run or trainer.global_step == 0:
            return
        best = Path(self.format_checkpoint_name({}))
        if trainer.is_global_zero:
            # Another name of it, since a checkpoint that is saved here belongs to the epoch after the last one.
            link_or_copy(best.with_name(LAST), best)
            if isinstance(trainer.strategy.checkpoint_io, WholeCheckpointIO):
                trainer.strategy.checkpoint_io.on_written(best)
            print(f"{self.monitor} was never measured, so the last epoch counts as the best", flush=True)
        self.best_model_path = str(best)
        trainer.strategy.barrier("best.ckpt")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state_dict = self._on_disk or state_dict
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
