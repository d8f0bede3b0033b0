"""Metrics that are rank 0's share alone: the run says so, since they look like all others."""

import functools
from typing import Any

from trainer.terminal import say
from trainer.tracking import client
from trainer.tracking.schemes import MAX_TAG_LENGTH

TAG = "metrics_of_rank_0"


class SharesAreNamed:
    """Names what a module of several processes logs without `sync_dist`: in one line, and as a tag of the run.

    They cannot be reduced here: a rank that does not log the same, behind an `if`, would make all others wait for it.
    torchmetrics objects reduce themselves.
    """

    def __init__(self) -> None:
        self._shares: list[str] = []
        self._said = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if trainer.world_size == 1 or "log" in vars(pl_module):
            return
        log = pl_module.log

        @functools.wraps(log)
        def noting(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
            reduced = kwargs.get("sync_dist") or kwargs.get("rank_zero_only") or hasattr(value, "compute")
            of_a_step = trainer.training and not kwargs.get("on_epoch")  # what a step logs is a sample of the curve
            if not reduced and not of_a_step and name not in self._shares:
                self._shares.append(name)
            log(name, value, *args, **kwargs)

        pl_module.log = noting

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if "log" in vars(pl_module):
            del pl_module.log
        self._say(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._say(trainer)

    def _say(self, trainer: Any) -> None:
        if len(self._shares) > self._said and trainer.is_global_zero:
            self._said = len(self._shares)
            names = ", ".join(self._shares)
            client.set_tag(TAG, names[:MAX_TAG_LENGTH])
            say(
                f"{names}: of rank 0's share of the samples alone, one of {trainer.world_size}. Log it with "
                "self.log(…, sync_dist=True), or as a torchmetrics object",
            )
