"""Lightning's MLFlowLogger, recognised by name: it comes from `lightning`, from `pytorch_lightning`, or a subclass."""

import gc
from collections.abc import Iterable
from typing import Any


def mlflow_loggers(loggers: Iterable[Any]) -> list[Any]:
    """Those of a Trainer's loggers that write to MLflow by themselves."""
    return [logger for logger in loggers if _is_a("MLFlowLogger", logger)]


def let_loggers_ask_first() -> None:
    """Have the MLFlowLogger of a Trainer open the run that it would open a moment later, in its own experiment.

    Autologging asks for a run when `Trainer.fit` begins, Lightning for its loggers' shortly after; the first to ask
    decides where the job's one run is, and how it is named. Only the garbage collector knows which Trainers there are.
    """
    for candidate in gc.get_objects():
        if _is_a("Trainer", candidate) and hasattr(candidate, "loggers"):
            for logger in mlflow_loggers(candidate.loggers):
                _ = logger.experiment


def _is_a(name: str, candidate: Any) -> bool:
    lightning = ("lightning.pytorch.", "pytorch_lightning.")
    return any(cls.__name__ == name and cls.__module__.startswith(lightning) for cls in type(candidate).__mro__)
