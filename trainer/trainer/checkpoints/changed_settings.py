"""What the command says now, against what a checkpoint brings back: a run's params must be what it trains with."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from trainer.terminal import say

Settings = list[list[dict[str, Any]]]
"""The plain values of each parameter group of each optimizer: lr, weight_decay, betas, …"""


class ConfiguredSettings(Callback):
    """Has a changed lr, weight_decay or patience apply where a training goes on (Lightning #12118: the old one would).

    A value applies if the command gives another than it gave before, and the training has not moved it since. What a
    schedule or the user's code has moved goes on from where it was, and a line says so.
    """

    def __init__(self) -> None:
        self._now: Settings = []
        self._before: Settings | None = None
        self._patience: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"settings": self._now}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["settings"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._patience = [stopping.patience for stopping in trainer.early_stopping_callbacks]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The callbacks are restored by now, the optimizers not yet; StagedFineTuning has made its groups.
        for stopping, patience in zip(trainer.early_stopping_callbacks, self._patience, strict=True):
            stopping.patience = patience
        self._now = _settings(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        restored = _settings(trainer)
        before = self._before or restored  # a checkpoint of another program does not say
        said: list[str] = []
        for optimizer, now_groups, before_groups in zip(trainer.optimizers, self._now, before, strict=False):
            for group, now, then in zip(optimizer.param_groups, now_groups, before_groups, strict=False):
                for name, value in now.items():
                    if name not in group or group[name] == value or then.get(name) == value:
                        continue
                    if self._before is not None and group[name] == then.get(name) and not trainer.lr_scheduler_configs:
                        said.append(f"{name} is now {value} ({group[name]} before)")
                        group[name] = value
                    else:
                        said.append(f"{name} goes on from the checkpoint's {group[name]}, not from {value}")
        self._before = None
        if said and trainer.is_global_zero:
            say("; ".join(dict.fromkeys(said)))


def _settings(trainer: Trainer) -> Settings:
    return [
        [{name: value for name, value in group.items() if _is_plain(value)} for group in optimizer.param_groups]
        for optimizer in trainer.optimizers
    ]


def _is_plain(value: Any) -> bool:
    entries = value if isinstance(value, tuple | list) else [value]
    return all(isinstance(entry, bool | int | float | str | None) for entry in entries)
