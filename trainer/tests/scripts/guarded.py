"""Habit 2: autologging and a run on global rank 0 only, all at import, devices="auto"."""

import os

import lightning as L
import mlflow
from no_mlflow import Net
from toy import loader

if int(os.environ.get("RANK", "0")) == 0:
    mlflow.set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
    mlflow.pytorch.autolog(log_models=False)
    mlflow.start_run(run_name="guarded by rank")
    mlflow.log_param("mine", 1)
trainer = L.Trainer(
    max_epochs=3,
    accelerator="cpu",
    devices="auto",
    strategy="ddp",
    check_val_every_n_epoch=2,
    enable_progress_bar=False,
)
trainer.fit(Net(), loader(shuffle=True), loader())
if trainer.is_global_zero:
    mlflow.log_metric("mine", 2.0)
    run = mlflow.get_run(mlflow.active_run().info.run_id)
    print("read back", run.data.params["mine"], run.data.metrics["mine"])
    mlflow.end_run()
