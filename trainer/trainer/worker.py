"""What torchrun starts on each rank: `python -m trainer.worker`.

Global rank 0 turns MLflow's autologging on; the store behind `MLFLOW_TRACKING_URI` is null on every other rank
(tracking/store.py). Whatever ends a rank is left in the job's folder for launch, which outlives it.
"""

import logging
import os
import sys
import warnings

from trainer import failure
from trainer.errors import UserError
from trainer.process import AGENT_PID, die_with_parent
from trainer.tracking.job import Job


def main() -> int:
    """Run this rank's part of the job; the exit code is 0, 1 for an error or 2 for a user's mistake."""
    die_with_parent(int(os.environ[AGENT_PID]))
    job, rank = Job.of_this_process(), int(os.environ["RANK"])
    kind, *arguments = job.arguments()
    assert kind == "fit", f"unknown kind of job: {kind}"
    try:
        _quieten()
        _require_accelerator()
        from trainer.app import fit
        from trainer.tracking import client

        if rank == 0:
            client.autolog()
        fit(arguments, job)
    except UserError as error:
        failure.write(job.failures, rank, error)
        return 2
    except BaseException as error:
        # SystemExit too: Lightning raises one, with exit code 0, when a rank gets SIGTERM in mid-training.
        failure.write(job.failures, rank, error)
        return 1
    return 0


def _require_accelerator() -> None:
    """Never train on the CPU where a GPU was asked for: NVML may see one that CUDA cannot use."""
    if os.environ["ACCELERATOR"] != "nvidia":
        return
    import torch

    if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
        raise UserError(
            f"CUDA can use {torch.cuda.device_count()} GPU(s) here, {os.environ['LOCAL_WORLD_SIZE']} wanted; check the "
            "driver with `nvidia-smi`, or train on the CPU with ACCELERATOR=cpu"
        )


def _quieten() -> None:
    """Keep what a user can act on; drop advice that is not true under this launcher."""
    for pattern in (
        r".*does not have many workers.*",  # digits: the images are smaller than the cost of a worker
        r".*number of training batches .* is smaller than the logging interval.*",
        r".*Autologging is known to be compatible.*",  # torch 2.14 with mlflow 3.17: tested here
        r".*isinstance\(treespec, LeafSpec\).*",  # deprecation inside Lightning, not the user's code
        r".*barrier\(\): using the device under current context.*",
    ):
        warnings.filterwarnings("ignore", message=pattern)
    # Their imports set the levels that are set here.
    import lightning.pytorch  # noqa: F401
    import pytorch_lightning  # noqa: F401

    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "mlflow.tracking.fluent"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.autologging_utils").setLevel(logging.ERROR)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A rank that failed must not wait in a destructor for the others.
    os._exit(status)
