"""Habit 3: everything on every rank, at the server that the script names, the model and checkpoints by autologging."""

import lightning as L
import mlflow
from no_mlflow import Net
from toy import loader

mlflow.set_tracking_uri("http://127.0.0.1:1")  # where the author's own server is
mlflow.set_experiment("unguarded-own")
mlflow.pytorch.autolog(registered_model_name="toy")
with mlflow.start_run():
    mlflow.log_params({"mine": 1})
    mlflow.log_text("written by every rank", "note.txt")
    trainer = L.Trainer(max_epochs=3, accelerator="cpu", devices=2, enable_progress_bar=False)
    trainer.fit(Net(), loader(shuffle=True), loader())
    mlflow.log_metric("mine", 2.0, synchronous=False)
