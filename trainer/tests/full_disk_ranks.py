"""Run by test_going_on.py, and under torchrun: the disk is full in the second and third of four epochs.

    torchrun --nproc-per-node 2 full_disk_ranks.py JOB_FOLDER OUT_FOLDER

Each rank writes rankN.json: what it takes for the best checkpoint.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from trainer import app
from trainer.app import TrainingCLI
from trainer.tracking.job import Job


class Fills(Callback):
    """Fills the disk in epoch 1, which is better than the first, and makes room again later."""

    def __init__(self, ballast: Path, frees_in_epoch: int) -> None:
        self.ballast = ballast
        self.frees_in_epoch = frees_in_epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if trainer.current_epoch == 1:
            with open(self.ballast, "wb", buffering=0) as ballast, contextlib.suppress(OSError):
                while True:
                    ballast.write(bytes(4096))
        if trainer.current_epoch == self.frees_in_epoch:
            self.ballast.unlink()


def trained(folder: Path, frees_in_epoch: int = 3) -> dict[str, Any]:
    """Train there, and return the path and the score of the best checkpoint."""
    quiet = ("--trainer.enable_progress_bar=false", "--trainer.max_epochs=4")
    cli = TrainingCLI(Job(folder), ["--model=scored.Scored", "--model.init_args.scores=[3,1,4,2]", *quiet])
    cli.trainer.callbacks.insert(0, Fills(folder / "ballast", frees_in_epoch))
    app.train(cli)
    return {"path": cli.best.best_model_path, "score": float(cli.best.best_model_score or 0)}


if __name__ == "__main__":
    os.environ["ACCELERATOR"] = "cpu"
    arguments, sys.argv = sys.argv[1:], sys.argv[:1]
    best = trained(Path(arguments[0]))
    (Path(arguments[1]) / f"rank{os.environ['RANK']}.json").write_text(json.dumps(best))
    # As the worker does: gloo's threads are not joined at the interpreter's end, which now and then aborts the process.
    sys.stdout.flush()
    os._exit(0)
