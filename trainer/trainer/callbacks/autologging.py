"""Autologging of a Trainer: every metric once, at the epoch that it belongs to, and early stopping with it."""

from types import ModuleType
from typing import Any

from trainer.tracking import client


class AutologgingAtTheRightTime:
    """Mends three habits of MLflow's autologging, each of which makes a run say something else than what happened.

    - A Trainer with an MLFlowLogger would log every metric twice, on two x-axes: autologging then stays out.
    - Callbacks' `on_train_epoch_end` runs before the module's own, so what a module logs there would be recorded one
      epoch late, and the last of it never: MLflow's callback is called after the module.
    - EarlyStopping is recorded only where it comes from `pytorch_lightning`: here it is recorded from either.
    """

    callbacks: ModuleType
    """The `callbacks` module of the Trainer's own package."""

    def __init__(self) -> None:
        self._postponed: Any = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        for index, callback in enumerate(trainer.callbacks):
            if client.is_autologging(callback):
                if client.has_mlflow_logger(trainer.loggers):
                    del trainer.callbacks[index]
                elif stage == "fit":
                    trainer.callbacks[index] = self._postponed = _after_the_module(callback, self.callbacks.Checkpoint)
                return

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self._postponed in trainer.callbacks:
            trainer.callbacks[trainer.callbacks.index(self._postponed)] = self._postponed.callback

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        for stopping in trainer.early_stopping_callbacks:
            client.log_params(
                {
                    f"early_stopping.{name}": getattr(stopping, name)
                    for name in ("monitor", "mode", "patience", "min_delta")
                }
            )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        stopped = [stopping.stopped_epoch for stopping in trainer.early_stopping_callbacks if stopping.stopped_epoch]
        if stopped and trainer.is_global_zero:
            client.log_metrics({"stopped_epoch": float(min(stopped))})


def _after_the_module(callback: Any, checkpoint: type) -> Any:
    """The same callback as a Checkpoint: the one kind that Lightning calls after the module's own hook.

    See `_call_callback_hooks(…, monitoring_callbacks=…)` in lightning/pytorch/trainer/call.py.
    """
    postponed = type("Postponed", (checkpoint,), {"callback": callback})()
    for hook in ("on_train_start", "on_train_batch_end", "on_train_epoch_end", "on_train_end"):
        setattr(postponed, hook, getattr(callback, hook))
    return postponed
