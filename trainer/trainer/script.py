"""A user's own training script, unmodified, as one rank of a job: `trainer run train.py --lr 0.1`."""

import atexit
import contextlib
import os
import runpy
import sys
import threading
from importlib import import_module
from pathlib import Path

from trainer.errors import UserError
from trainer.tracking import client
from trainer.tracking.job import Job


def run(arguments: list[str], job: Job) -> None:
    """Run the script to its end, as `python train.py …` would; with or without a `__main__` guard.

    Args:
        arguments: The script's path and its own arguments.
        job: Where Lightning keeps the script's logs and checkpoints, unless the script says where.

    Raises:
        UserError: The script asks Lightning for other devices than the job has.
        SystemExit: The script says that it failed.
    """
    script = Path(arguments[0])
    _let_lightning_use_the_jobs_devices(job)
    sys.argv = arguments
    sys.path[0] = str(script.parent)
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        # Lightning's SIGTERMException is a SystemExit with code 0 too, but no end that the script has chosen.
        if type(end) is not SystemExit or end.code:
            raise
    except ValueError as error:
        if "does not match the world size" not in str(error):
            raise
        raise UserError(
            f"{script.name} asks its Trainer for other devices than the job's {os.environ['WORLD_SIZE']} "
            "process(es): take `devices` and `num_nodes` out of it, or start as many with --devices"
        ) from error
    finally:
        with contextlib.suppress(Exception):  # a store that the script has chosen itself may be broken
            client.flush()
        if os.environ["RANK"] == "0":
            client.close_run(job)  # also of a script that failed before it had one: launch sets the status
        with contextlib.suppress(OSError):  # tried once more below, where nothing else has failed
            client.write_out()
    _end_as_an_interpreter_does()
    client.write_out()


def _let_lightning_use_the_jobs_devices(job: Job) -> None:
    """Give Lightning the job's devices where the script leaves them out, or says "auto"."""
    defaults = {
        "ACCELERATOR": "gpu" if os.environ["ACCELERATOR"] == "nvidia" else "cpu",
        "DEVICES": os.environ["LOCAL_WORLD_SIZE"],
        "NUM_NODES": os.environ["GROUP_WORLD_SIZE"],
        "DEFAULT_ROOT_DIR": str(job.folder / "lightning"),  # the current folder may be mounted read-only
    }
    for name, value in defaults.items():
        # https://lightning.ai/docs/pytorch/stable/common/trainer.html: what the environment has, an argument overrides
        os.environ.setdefault(f"PL_TRAINER_{name}", value)
    for package in ("lightning.pytorch", "pytorch_lightning"):
        accelerators = import_module(f"{package}.accelerators")

        class JobsProcesses(accelerators.CPUAccelerator):  # type: ignore[name-defined]
            """devices="auto" on a CPU is one process to Lightning, however many torchrun has started."""

            @staticmethod
            def auto_device_count() -> int:
                return int(os.environ["LOCAL_WORLD_SIZE"])

        accelerators.AcceleratorRegistry.register("cpu", JobsProcesses, description="the job's", override=True)


def _end_as_an_interpreter_does() -> None:
    """Wait for the script's threads and call its exit handlers: the worker leaves by `os._exit`, which does neither."""
    threading._shutdown()  # type: ignore[attr-defined]  # thread pools are told to end first, then all are joined
    atexit._run_exitfuncs()
