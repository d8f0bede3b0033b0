"""The ground truth of a training, written beside everything that is under test: a file of its own, line by line.

`truth.csv`     time,key,step,value of each point that the run must hold
`artifacts.csv` path,sha256 of each file that the run must hold
`marks`         where the training is, one line each: a fault is thrown when its line appears
"""

import hashlib
import os
import random
import time
from pathlib import Path
from typing import Any

import mlflow
import torch
from lightning import Callback, LightningModule, Trainer

TRUTH_VARIABLE = "FAULT_TRUTH"
"""Environment variable: the folder that gets the files."""
PAYLOAD_EPOCH = 1
PAYLOAD_BYTES = 8 * 2**20
BALLAST_BYTES = 8 * 2**20
"""Random data in each checkpoint, so that writing one takes a while."""
PICKLING_SECONDS = 0.1


class Truth(Callback):
    """Records what Lightning has, before MLflow sees it; and logs points and a file of its own, as users' code does."""

    def __init__(self) -> None:
        self._folder = Path(os.environ[TRUTH_VARIABLE])
        self._folder.mkdir(parents=True, exist_ok=True)
        self._ballast = torch.frombuffer(bytearray(random.Random(0).randbytes(BALLAST_BYTES)), dtype=torch.uint8)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        if batch_idx == trainer.num_training_batches // 2:
            self._mark(f"mid-epoch {trainer.current_epoch}")
        step, value = trainer.global_step, float(outputs["loss"])
        self._point("batch_loss", step, value)
        mlflow.log_metric("batch_loss", value, step=step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for key, value in trainer.callback_metrics.items():
            self._point(key, trainer.current_epoch, float(value))
        self._mark(f"epoch {trainer.current_epoch}")
        if trainer.current_epoch == PAYLOAD_EPOCH:
            payload = self._folder / "payload.bin"
            data = random.Random(1).randbytes(PAYLOAD_BYTES)
            payload.write_bytes(data)
            self._line("artifacts.csv", f"files/payload.bin,{hashlib.sha256(data).hexdigest()}")
            self._mark("payload")
            mlflow.log_artifact(str(payload), "files")
            payload.unlink()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            checkpoint["ballast"] = self._ballast
            checkpoint["pickled_slowly"] = _PickledSlowly(self, f"checkpoint {trainer.current_epoch}")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._mark("testing")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            for key, value in trainer.callback_metrics.items():
                self._point(key, 0, float(value))
            self._mark("tested")

    def _point(self, key: str, step: int, value: float) -> None:
        self._line("truth.csv", f"{time.time():.3f},{key},{step},{value!r}")

    def _mark(self, what: str) -> None:
        self._line("marks", what)

    def _line(self, name: str, line: str) -> None:
        with open(self._folder / name, "a") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())


class _PickledSlowly:
    """Marks the moment at which the checkpoint that holds it is being written, and makes it longer."""

    def __init__(self, truth: Truth, mark: str) -> None:
        self._truth, self._what = truth, mark

    def __reduce__(self) -> tuple[type[int], tuple[()]]:
        self._truth._mark(self._what)
        time.sleep(PICKLING_SECONDS)
        return int, ()
