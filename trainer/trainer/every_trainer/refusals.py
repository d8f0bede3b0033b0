"""Stock callbacks that fail without a word, or hang, where a job has more than one process."""

import os
from typing import Any

from trainer.errors import UserError


class Refusals:
    """Ends a job of several processes that uses one of them, before it trains, and names what to take instead."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        started = int(os.environ["WORLD_SIZE"])
        if trainer.world_size != started:  # each process would train by itself, on all of the data
            raise UserError(
                f"this Trainer trains on {trainer.world_size} process(es), the job has {started}: take `devices` and "
                f"`num_nodes` out of it, or start as many with --devices {trainer.world_size}"
            )
        if started == 1:
            return
        for callback in trainer.callbacks:
            names = [cls.__name__ for cls in type(callback).__mro__]
            if "BackboneFinetuning" in names:
                raise UserError(
                    "BackboneFinetuning lets the replicas diverge when a job has more than one process (Lightning "
                    "#20340): use trainer.finetuning.StagedFineTuning instead, or --devices 1"
                )
            if getattr(callback, "save_on_exception", False) or "OnExceptionCheckpoint" in names:
                raise UserError(
                    f"{names[0]} saves when an exception is raised, which hangs when one of several processes fails "
                    "(Lightning #20187): take it out; the checkpoint of the last whole epoch is there in any case"
                )
