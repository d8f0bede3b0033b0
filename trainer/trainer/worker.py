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
from trainer.process import AGENT_PID, die_with_parent, end_soon_after_sigterm
from trainer.terminal import outlive_the_reader, say
from trainer.tracking.job import Job

GRACE_SECONDS = 5.0
"""From SIGTERM, which torchrun sends to the others when a rank has died, to this rank's end. Shorter than launch's, so
that every rank of a job ends before launch has to kill them."""


def main() -> int:
    """Run this rank's part of the job; the exit code is 0, 1 for an error or 2 for a user's mistake."""
    die_with_parent(int(os.environ[AGENT_PID]))
    outlive_the_reader()
    job, rank = Job.of_this_process(), int(os.environ["RANK"])
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if restart and rank == 0:  # at once: loading PyTorch takes seconds
        of = os.environ["TORCHELASTIC_MAX_RESTARTS"]
        say(f"a rank has failed; all workers are started again (restart {restart} of {of})")
    failures = failure.of_this_start(job.failures)
    end_soon_after_sigterm(GRACE_SECONDS, lambda: failure.note(failures, rank, "it was told to end by SIGTERM"))
    kind, *arguments = job.arguments()
    try:
        job.forget_done(rank)
        _quieten()
        _require_accelerator()
        from trainer.tracking import client

        if rank == 0:
            client.autolog()
            client.note_restart(restart)
        if kind == "fit":
            from trainer import app

            app.fit(arguments, job)
        else:
            from trainer import script

            script.run(arguments, job)
        job.write_done(rank, int(os.environ["WORLD_SIZE"]))
    except UserError as error:
        failure.write(failures, rank, error)
        return 2
    except BaseException as error:
        # SystemExit too: Lightning raises one, with exit code 0, when a rank gets SIGTERM in mid-training.
        failure.write(failures, rank, error)
        return 1
    return 0


def _require_accelerator() -> None:
    """Never train on the CPU where a GPU was asked for: NVML may see one that CUDA cannot use."""
    if os.environ["ACCELERATOR"] != "nvidia":
        return
    import torch

    try:
        torch.cuda.init()  # before this, torch.cuda.device_count() is NVML's count
        usable, why = torch.cuda.device_count(), ""
    except (RuntimeError, AssertionError) as error:  # no driver, too old a driver, a torch without CUDA
        usable, why = 0, f" ({str(error).split('. ')[0]})"
    if usable < int(os.environ["LOCAL_WORLD_SIZE"]):
        raise UserError(
            f"CUDA can use {usable} GPU(s) here, {os.environ['LOCAL_WORLD_SIZE']} wanted{why}; check the driver with "
            "`nvidia-smi`, or train on the CPU with ACCELERATOR=cpu"
        )


def _quieten() -> None:
    """Keep what a user can act on; drop advice that is not true under this launcher."""
    for pattern in (
        r".*does not have many workers.*",  # digits: the images are smaller than the cost of a worker
        r".*number of training batches .* is smaller than the logging interval.*",
        r".*Autologging is known to be compatible.*",  # torch 2.14 with mlflow 3.17: tested here
        r".*isinstance\(treespec, LeafSpec\).*",  # deprecation inside Lightning, not the user's code
        r".*Using `DistributedSampler` with the dataloaders.*",  # exact_evaluation.py says where it is true
        r".*It is recommended to use `self.log\(.*sync_dist=True.*",  # shares.py says it in one line
        r".*`tensorboardX` has been removed.*",
        r"Checkpoint directory .* exists and is not empty",  # of a job that goes on
        r".*barrier\(\): using the device under current context.*",
    ):
        warnings.filterwarnings("ignore", message=pattern)
    # Their imports set the levels that are set here.
    import lightning.pytorch  # noqa: F401
    import pytorch_lightning  # noqa: F401  # and lightning_fabric with it

    for name in (
        "lightning.pytorch",
        "lightning.fabric",
        "pytorch_lightning",
        "lightning_fabric",
        "mlflow.tracking.fluent",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.autologging_utils").setLevel(logging.ERROR)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A rank that failed must not wait in a destructor for the others.
    os._exit(status)
