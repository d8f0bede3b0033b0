"""Habit 4: Lightning's MLFlowLogger, which writes on an x-axis of steps."""

import lightning as L
from lightning.pytorch.loggers import MLFlowLogger
from no_mlflow import Net
from toy import loader

logger = MLFlowLogger(experiment_name="own-logger", run_name="by the logger")
trainer = L.Trainer(max_epochs=3, logger=logger, enable_progress_bar=False, log_every_n_steps=1)
trainer.fit(Net(), loader(shuffle=True), loader())
trainer.validate(dataloaders=loader())
