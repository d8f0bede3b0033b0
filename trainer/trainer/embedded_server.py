"""The embedded tracking server: MLflow on SQLite and local files, for machines without Docker.

trainer server             in the foreground
trainer server --detach    in the background, unless one answers already
trainer server --stop      stop that one
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from trainer.errors import UserError
from trainer.lab import lab_dir
from trainer.tracking.server import answers

HOST = "127.0.0.1"
START_SECONDS = 90.0
STOP_SECONDS = 15.0
# Off: background job workers for GenAI, 2 GB of memory that a training lab has no use for, and telemetry.
ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


def serve(port: int) -> int:
    """Run the server in the foreground; does not return."""
    folder = _folder()
    os.environ.update(ENVIRONMENT)
    command = _command(folder, port)
    os.execv(command[0], command)


def detach(port: int) -> int:
    """Start the server in the background and return once it answers; at once where it does already.

    Raises:
        UserError: The port is taken by something else, or the server did not come up.
    """
    uri = f"http://{HOST}:{port}"
    try:
        if answers(uri):
            print(f"trainer: MLflow answers at {uri}")
            return 0
    except UserError:
        raise UserError(
            f"port {port} is taken by something that is no MLflow server; choose another: PORT={port + 1}"
        ) from None
    if _running() is not None:
        raise UserError("this lab's MLflow server runs on another port already; stop it first: trainer server --stop")
    folder = _folder()
    log = folder / "server.log"
    with open(log, "ab") as output:
        process = subprocess.Popen(
            _command(folder, port),
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _pid_file().write_text(str(process.pid))
    print(f"trainer: starting MLflow at {uri} (log: {log})", flush=True)
    deadline = time.monotonic() + START_SECONDS
    while not answers(uri):
        if process.poll() is not None or time.monotonic() > deadline:
            if process.poll() is None:
                stop()
            _pid_file().unlink(missing_ok=True)
            reason = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
            raise UserError(f"the MLflow server did not come up on port {port} ({reason[0][:200]}); its log: {log}")
        time.sleep(0.3)
    return 0


def stop() -> int:
    """Stop the server that `detach` started; says so where there is none."""
    process = _running()
    if process is None:
        print("trainer: no embedded MLflow server is running")
        return 0
    family = [process, *process.children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for survivor in alive:
        survivor.kill()
    _pid_file().unlink(missing_ok=True)
    print("trainer: the embedded MLflow server is stopped")
    return 0


def _running() -> psutil.Process | None:
    """The server that `detach` started in this lab, or None."""
    try:
        process = psutil.Process(int(_pid_file().read_text()))
        # the pid may have been given to another program since
        return process if "mlflow" in " ".join(process.cmdline()) else None
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None


def _command(folder: Path, port: int) -> list[str]:
    return [
        str(Path(sys.executable).with_name("mlflow")),
        "server",
        f"--host={HOST}",
        f"--port={port}",
        "--workers=1",  # SQLite takes one writer at a time
        f"--backend-store-uri=sqlite:///{folder / 'mlflow.db'}",
        f"--artifacts-destination={folder / 'artifacts'}",
        "--serve-artifacts",
    ]


def _folder() -> Path:
    folder = lab_dir() / "mlflow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; set LAB_DIR to a folder of yours") from None
    return folder


def _pid_file() -> Path:
    return lab_dir() / "mlflow" / "server.pid"
