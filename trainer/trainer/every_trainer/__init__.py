"""What every Trainer of a job gets beside its own callbacks, the app's Trainer and those in users' scripts alike.

Lightning asks for them through its documented entry points (pyproject.toml), one for each name under which it can be
imported: `lightning` and `pytorch_lightning` are one code base with two sets of classes. Outside a job it gets none.
"""

import os
from importlib import import_module
from typing import Any

from trainer.tracking.job import JOB_DIR_VARIABLE, Job


def for_lightning() -> list[Any]:
    """The callbacks for `lightning.pytorch.Trainer`."""
    return _for("lightning.pytorch")


def for_pytorch_lightning() -> list[Any]:
    """The callbacks for `pytorch_lightning.Trainer`."""
    return _for("pytorch_lightning")


def _for(package: str) -> list[Any]:
    if JOB_DIR_VARIABLE not in os.environ:
        return []
    from trainer.every_trainer.autologging import AutologgingAtTheRightTime
    from trainer.every_trainer.exact_evaluation import ExactEvaluation
    from trainer.every_trainer.hyperparameters import Hyperparameters
    from trainer.every_trainer.refusals import Refusals
    from trainer.every_trainer.replicas import EqualReplicas
    from trainer.every_trainer.shares import SharesAreNamed

    mixins: list[type] = [Refusals, ExactEvaluation, AutologgingAtTheRightTime, EqualReplicas, SharesAreNamed]
    if Job.of_this_process().arguments()[0] == "run":
        mixins.append(Hyperparameters)  # the app logs its whole configuration instead
    callbacks = import_module(f"{package}.callbacks")
    return [type(mixin.__name__, (mixin, callbacks.Callback), {"callbacks": callbacks})() for mixin in mixins]
