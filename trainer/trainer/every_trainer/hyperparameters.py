"""What a script's model and data were made with: MLflow's autologging does not record it."""

from typing import Any

from trainer.tracking import client
from trainer.tracking.loggers import mlflow_loggers


class Hyperparameters:
    """Logs what `save_hyperparameters()` kept, as `model.<name>` and `data.<name>`.

    Prefixed, since a bare `lr` would collide with the optimizer's default of that name, which autologging records.
    """

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.is_global_zero or mlflow_loggers(trainer.loggers):  # Lightning hands it to a logger
            return
        client.log_hyperparameters("model", pl_module.hparams_initial)
        if trainer.datamodule is not None:
            client.log_hyperparameters("data", trainer.datamodule.hparams_initial)
