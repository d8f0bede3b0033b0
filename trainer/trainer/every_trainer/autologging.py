"""Autologging of a Trainer: every metric once, at the epoch that it belongs to, and early stopping with it."""

import contextlib
from types import ModuleType
from typing import Any

from trainer.tracking import client
from trainer.tracking.loggers import mlflow_loggers


class AutologgingAtTheRightTime:
    """Mends five habits of MLflow's autologging, each of which makes a run say something else than what happened.

    - A Trainer with an MLFlowLogger would log every metric twice, on two x-axes: autologging then stays out.
    - Callbacks' `on_train_epoch_end` runs before the module's own, so what a module logs there would be recorded one
      epoch late, and the last of it never: MLflow's callback is called after the module.
    - It is called after the checkpoints, and keeps metrics in memory for a while: a job that is killed in between goes
      on after that epoch, whose metrics are nowhere. Here they are on disk before any checkpoint of the epoch is.
    - In an epoch without a validation it records the last one's metrics once more: they are left out.
    - EarlyStopping is recorded only where it comes from `pytorch_lightning`: here it is recorded from either.
    """

    callbacks: ModuleType
    """The `callbacks` module of the Trainer's own package."""

    def __init__(self) -> None:
        self._postponed: Any = None
        self._known: set[str] = set()
        self._of_validation: set[str] = set()
        self._validated = False

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        for callback in trainer.callbacks:
            if client.is_autologging(callback):
                others = [other for other in trainer.callbacks if other is not callback]
                if mlflow_loggers(trainer.loggers):
                    trainer.callbacks = others
                elif stage == "fit":
                    self._postponed = self._after_the_module(callback)
                    checkpoints = [at for at, one in enumerate(others) if isinstance(one, self.callbacks.Checkpoint)]
                    first = min(checkpoints, default=len(others))
                    trainer.callbacks = [*others[:first], self._postponed, *others[first:]]
                return

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self._postponed in trainer.callbacks:
            trainer.callbacks[trainer.callbacks.index(self._postponed)] = self._postponed.callback

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        for number, stopping in enumerate(trainer.early_stopping_callbacks):
            settings = {name: getattr(stopping, name) for name in ("monitor", "mode", "patience", "min_delta")}
            client.log_hyperparameters(f"early_stopping.{number}" if number else "early_stopping", settings)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        # not on_train_end: a job that had stopped already when it was cut off trains nothing when it goes on
        stoppings = trainer.early_stopping_callbacks
        stopped = [one for one in stoppings if one.stopping_reason.name != "NOT_STOPPED"]
        if stopped and trainer.is_global_zero:
            epoch = min(one.stopped_epoch for one in stopped)
            client.log_metrics({"stopped_epoch": float(epoch)}, epoch)
            for one in stopped:
                print(f"stopped early in epoch {one.stopped_epoch}: {one.stopping_reason_message}", flush=True)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._known = set(trainer.callback_metrics)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._of_validation |= set(trainer.callback_metrics) - self._known
            self._validated = True

    def _after_the_module(self, callback: Any) -> Any:
        """MLflow's callback as a Checkpoint: the one kind that Lightning calls after the module's own hook.

        See `_call_callback_hooks(…, monitoring_callbacks=…)` in lightning/pytorch/trainer/call.py (2.6.6).
        """

        def on_train_epoch_end(trainer: Any, pl_module: Any) -> None:
            # What MLflow takes for logged by step it leaves out of an epoch's metrics.
            stale = set() if self._validated else self._of_validation - callback._step_metrics
            callback._step_metrics |= stale
            callback.on_train_epoch_end(trainer, pl_module)
            callback._step_metrics -= stale
            self._validated = False
            if trainer.is_global_zero:
                with contextlib.suppress(
                    OSError
                ):  # a full disk: MLflow's logger keeps them, and they are written later
                    callback.metrics_logger.flush()

        postponed = type("Postponed", (self.callbacks.Checkpoint,), {"callback": callback})()
        for hook in ("on_train_start", "on_train_batch_end", "on_train_end"):
            setattr(postponed, hook, getattr(callback, hook))
        postponed.on_train_epoch_end = on_train_epoch_end
        return postponed
