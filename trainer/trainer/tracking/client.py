"""What a worker's own code (the app, the callbacks, the script's runner) writes to the run.

On ranks other than 0 the job's store is null, so every rank calls the same.
"""

import contextlib
import importlib.metadata
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, infer_signature
from mlflow.utils.autologging_utils import AUTOLOGGING_CONF_KEY_IS_GLOBALLY_CONFIGURED, AUTOLOGGING_INTEGRATIONS

from trainer.terminal import say
from trainer.tracking import outbox
from trainer.tracking.history import History
from trainer.tracking.job import Job
from trainer.tracking.schemes import JOB_SCHEME, SERVER_VARIABLE
from trainer.tracking.spool import writer_of

MODEL_NAME = "model"
DISK_SECONDS = 60.0
"""How long the end of a rank waits for room on a full disk."""


def autolog() -> None:
    """Have MLflow log what Lightning's Trainer does, but for models and checkpoints.

    The app logs the best model itself, once; autolog would pickle the last one and upload each better checkpoint.
    """
    mlflow.pytorch.autolog(log_models=False, checkpoint=False)
    # Else `mlflow.autolog()` in a script would change nothing, and `mlflow.pytorch.autolog()` would.
    AUTOLOGGING_INTEGRATIONS["pytorch"][AUTOLOGGING_CONF_KEY_IS_GLOBALLY_CONFIGURED] = True


def is_autologging(callback: Any) -> bool:
    """Whether this is the callback by which MLflow's autologging follows a Trainer."""
    cls = type(callback)
    return cls.__module__ == "mlflow.pytorch._lightning_autolog" and cls.__name__.endswith("MlflowPLCallback")


def note_restart(restart: int) -> None:
    """Where torchrun has started the workers again, say so on the run (tag `restarts`). For global rank 0 only."""
    if not restart:
        return
    job = Job.of_this_process()
    restarts = job.write_restart()
    if record := job.run_record():
        MlflowClient().set_tag(record.run_id, "restarts", str(restarts))


@contextmanager
def run() -> Iterator[None]:
    """The job's one run as MLflow's active run, so that autolog joins it."""
    mlflow.set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
    with mlflow.start_run():
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):  # what failed is the cause
                write_out()
            raise
    write_out()


def flush() -> None:
    """Wait for what was logged in the background (`synchronous=False`, `mlflow.config.enable_async_logging`)."""
    mlflow.flush_async_logging()


def write_out() -> None:
    """Wait for what a full disk has kept from being written.

    Raises:
        OSError: It is still full after `DISK_SECONDS`.
    """
    writer_of(Job.of_this_process().spool).flush(DISK_SECONDS)


def close_run(job: Job) -> None:
    """End the active run; a job that has asked for none gets one all the same, since every job is one run.

    For global rank 0 only: the runs of the others are made up.
    """
    if not _is_the_jobs(mlflow.get_tracking_uri()):
        say(f"the script logs to {mlflow.get_tracking_uri()}: none of that is in the job's run")
        with contextlib.suppress(Exception):  # that store may be broken
            mlflow.end_run()
        mlflow.set_tracking_uri(JOB_SCHEME + os.environ[SERVER_VARIABLE])
    if job.run_record() is None:
        mlflow.set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
        mlflow.start_run()
    mlflow.end_run()


def _is_the_jobs(uri: str) -> bool:
    return uri.startswith((JOB_SCHEME, "http://", "https://"))  # the latter are led to the job's (store.py)


def log_config(config: dict[str, Any], text: str) -> None:
    """Log a resolved configuration: every value as a param under its dotted name, and the whole as config.yaml.

    Where the job goes on after it was cut off, the whole stands beside the first one's as config.resume-1.yaml.
    """
    _log_valid_params(_flat(config))
    job = Job.of_this_process()
    # Not by the number of starts alone: the first one may have been cut off before it came here.
    beside = job.resumes and outbox.was_put(job, "config.yaml")
    mlflow.log_text(text, f"config.resume-{job.resumes}.yaml" if beside else "config.yaml")


def log_params(params: dict[str, Any]) -> None:
    items = list(params.items())
    for start in range(0, len(items), 100):  # as many as one request may carry
        mlflow.log_params(dict(items[start : start + 100]))


def log_hyperparameters(prefix: str, values: Mapping[str, Any]) -> None:
    """Log nested hyperparameters as params under `<prefix>.<dotted name>`."""
    if values:
        _log_valid_params(_flat(dict(values), prefix))


def _log_valid_params(params: dict[str, Any]) -> None:
    """Log params; what MLflow refuses (another value than before, odd characters) is no reason to end a training."""
    try:
        log_params(params)
    except MlflowException as error:
        if len(params) > 1:
            for key, value in params.items():
                _log_valid_params({key: value})
        else:
            warnings.warn(f"not recorded: {' '.join(error.message.split())[:300]}", stacklevel=2)


def set_tag(key: str, value: str) -> None:
    mlflow.set_tag(key, value)


def log_metrics(metrics: dict[str, float], step: int) -> None:
    mlflow.log_metrics(metrics, step)


def has_model(step: int) -> bool:
    """Whether an earlier start of the job has logged its model of this step, before it was cut off."""
    return History(Job.of_this_process()).has_model(step)


def log_checkpoint(file: Path) -> None:
    """Have launch keep a checkpoint among the run's artifacts, in the background; a newer one of that name replaces it.

    Call it on global rank 0, once the file stands whole on disk. It is linked, not copied, so it must only ever be
    replaced, not written into. Where the disk is full a line says that it is not kept.

    Args:
        file: In the job's `checkpoints/`.
    """
    job = Job.of_this_process()
    record = job.run_record()
    if record is None:
        return
    try:
        outbox.put(job, record.run_id, file, f"checkpoints/{file.name}", replaces=True)
    except OSError as error:
        say(f"{file.name} does not get to the artifact store: {error.strerror}")


def log_model(model: torch.nn.Module, example: torch.Tensor, step: int) -> str:
    """Log a model so that `mlflow.pytorch.load_model` needs none of the code it was written in.

    Args:
        model: In eval mode, on the CPU. Its forward takes one tensor.
        example: Input of `model`, any batch size >= 1.
        step: Where on the run's x-axis the model stands; MLflow shows the metrics of that step as the model's.

    Returns:
        The format it was logged in: "pt2" (torch.export), or "pickle" where the model cannot be exported; a pickled
        model does need its code to be loaded.
    """
    example = example.detach().cpu()
    if len(example) == 1:  # torch.export takes a batch of one for a constant
        example = torch.cat([example, example])
    arguments = {
        "name": MODEL_NAME,
        "step": step,
        # Given, because MLflow would find them by loading the model in another process for 8 seconds.
        "pip_requirements": [f"{name}=={importlib.metadata.version(name)}" for name in ("mlflow", "torch", "numpy")],
    }
    # Tried before, since a log_model that fails leaves a failed logged model behind.
    signature = _signature(model, example)
    serialization_format = "pt2" if signature and _exports(model, example) else "pickle"
    if signature:  # without one MLflow would infer it from the example, and fail
        arguments |= {"signature": signature, "input_example": _array(example)}
    mlflow.pytorch.log_model(model, serialization_format=serialization_format, **arguments)
    return serialization_format


def _signature(model: torch.nn.Module, example: torch.Tensor) -> ModelSignature | None:
    """None where the output is neither a tensor nor a dictionary of tensors: MLflow has no words for it."""
    with torch.no_grad():
        output = model(example)
    if isinstance(output, torch.Tensor):
        return infer_signature(_array(example), _array(output))
    if isinstance(output, dict) and all(isinstance(value, torch.Tensor) for value in output.values()):
        return infer_signature(_array(example), {str(name): _array(value) for name, value in output.items()})
    return None


def _array(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # NumPy has no bfloat16


def _exports(model: torch.nn.Module, example: torch.Tensor) -> bool:
    try:
        torch.export.export(model, (example,), dynamic_shapes=[{0: torch.export.Dim.AUTO}])
    except Exception:  # export raises whatever the model's code does under tracing
        return False
    return True


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Nested dictionaries and lists as dotted names; an entry with a class_path goes under its class's name."""
    if isinstance(value, dict) and value:
        if "class_path" in value:
            name = f"{name}.{value['class_path'].rsplit('.', 1)[-1]}" if name[-1:].isdigit() else name
        items = [(f"{name}.{key}" if name else str(key), entry) for key, entry in value.items()]
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        items = [(f"{name}.{index}", entry) for index, entry in enumerate(value)]
    else:
        return {name: str(value)}
    return {key: text for item in items for key, text in _flat(item[1], item[0]).items()}
