"""Metrics that are rank 0's share alone: the run says so, since they look like all others."""

from typing import Any

from trainer.terminal import say
from trainer.tracking import client
from trainer.tracking.schemes import MAX_TAG_LENGTH

TAG = "metrics_of_rank_0"


class SharesAreNamed:
    """Names what a module of several processes logs per epoch without `sync_dist`: in a line, and as a tag of the run.

    They cannot be reduced here: a rank that does not log the same, behind an `if`, would make all others wait for it.
    torchmetrics objects reduce themselves.
    """

    def __init__(self) -> None:
        self._shares: list[str] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._name(trainer)

    on_test_end = on_train_epoch_end = on_train_end = on_validation_end

    def _name(self, trainer: Any) -> None:
        if trainer.world_size == 1 or not trainer.is_global_zero or trainer.sanity_checking:
            return
        # There is no public way to what `self.log` has collected (Lightning 2.6.6).
        metrics = [metric for metric in (trainer._results or {}).values() if metric.is_tensor and metric.meta.on_epoch]
        local = [one.meta.name for one in metrics if not (one.meta.sync.should or one.meta.sync.rank_zero_only)]
        if set(local) <= set(self._shares):
            return
        self._shares = list(dict.fromkeys([*self._shares, *local]))
        names = ", ".join(self._shares)
        client.set_tag(TAG, names[:MAX_TAG_LENGTH])
        say(
            f"{names}: of rank 0's share of the samples alone, one of {trainer.world_size}. Log it with "
            "self.log(…, sync_dist=True), or as a torchmetrics object"
        )
