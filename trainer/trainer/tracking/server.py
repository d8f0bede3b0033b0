"""Which MLflow server a job talks to, and whether it answers."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from urllib.parse import urlencode, urlsplit

from trainer.errors import UserError
from trainer.tracking.job import RunRecord

DEFAULT_URI = "http://127.0.0.1:8000"
PATIENCE_SECONDS = 20.0
PROBE_SECONDS = 3.0
"""How long whoever can go on without the server waits for a sign of life of it."""


def tracking_uri() -> str:
    """The server's URL from `MLFLOW_TRACKING_URI`, or the embedded server's.

    Raises:
        UserError: The variable is set to something other than an http(s) URL.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    if not uri.startswith(("http://", "https://")):
        raise UserError(
            f"MLFLOW_TRACKING_URI={uri} is not the http(s) URL of an MLflow server; "
            f"start one with `trainer server --detach` and use {DEFAULT_URI}"
        )
    return uri.rstrip("/")


def run_url(run: RunRecord) -> str:
    """Where the user's browser finds a run, for printing only; `MLFLOW_UI_URL` where it knows the server otherwise."""
    base = os.environ.get("MLFLOW_UI_URL") or run.server or tracking_uri()
    return f"{base.rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}"


def answers(uri: str, timeout: float = 5.0) -> bool:
    """Whether an MLflow server answers at `uri` now.

    Raises:
        UserError: Something answers there, but it is no MLflow server, or it refuses this host name.
    """
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=timeout) as response:
            healthy = response.read(16).strip() == b"OK"
    except urllib.error.HTTPError as error:
        if error.code in (502, 503, 504):  # a proxy whose server is still starting
            return False
        raise UserError(f"{uri} answers with {error}, so it is no MLflow server; check MLFLOW_TRACKING_URI") from None
    except (OSError, ValueError):
        return False
    if not healthy:
        raise UserError(f"what answers at {uri} is no MLflow server; check MLFLOW_TRACKING_URI")
    return True


def is_there(uri: str, timeout: float = PROBE_SECONDS) -> bool:
    """Whether anything answers at `uri` now, be it no MLflow server: a call to it then says what is wrong."""
    try:
        return answers(uri, timeout)
    except UserError:
        return True


def require_active(uri: str, experiment: str) -> None:
    """
    Raises:
        UserError: Somebody has deleted the experiment on the server at `uri`: no run can be made in it.
    """
    query = urlencode({"experiment_name": experiment})
    try:
        with urllib.request.urlopen(f"{uri}/api/2.0/mlflow/experiments/get-by-name?{query}", timeout=5.0) as response:
            deleted = json.load(response)["experiment"]["lifecycle_stage"] == "deleted"
    except (OSError, ValueError, KeyError, TypeError):  # it is new, or the server asks for a password: then a rank sees
        return
    if deleted:
        raise UserError(f"experiment {experiment} was deleted on {uri}: restore it there, or give another --experiment")


def wait_for(uri: str, patience: float = PATIENCE_SECONDS, say: Callable[[str], None] = lambda line: None) -> None:
    """Return once an MLflow server answers at `uri`.

    Args:
        uri: http(s) URL.
        patience: Seconds.
        say: Called with one line for the user where it takes long.

    Raises:
        UserError: None did within `patience` seconds.
    """
    began = time.monotonic()
    deadline, said = began + patience, False
    while not answers(uri):
        if time.monotonic() > began + 2 and not said:
            said = True
            say(f"waiting for the MLflow server at {uri}")
        if time.monotonic() > deadline:
            port = f" --port {urlsplit(uri).port}" if urlsplit(uri).port else ""
            raise UserError(
                f"no MLflow server answers at {uri}; start one with `trainer server --detach{port}` "
                "(in Docker: `docker compose up -d mlflow`), set MLFLOW_TRACKING_URI, or train without one by --offline"
            )
        time.sleep(0.5)
