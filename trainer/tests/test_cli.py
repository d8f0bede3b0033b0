"""The command line before any job: help, devices, the server's address."""

import subprocess
import sys

import pytest

from harness import TRAINER, Lab, free_port
from trainer.errors import UserError
from trainer.launch import devices


def test_help_imports_nothing_heavy() -> None:
    """Guards: seconds of imports before `trainer --help` answers."""
    code = (
        "import sys, runpy; sys.argv = ['trainer', '--help']\n"
        "try: runpy.run_module('trainer', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'lightning', 'mlflow', 'numpy', 'pynvml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "fit" in done.stdout


def test_no_gpu_where_one_was_asked_for_is_an_error_that_names_the_way_out(lab: Lab) -> None:
    """Guards: a training that silently runs on the CPU when a GPU was asked for."""
    done = lab.run("fit", "--config", "configs/digits.yaml", ACCELERATOR="nvidia", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert line.startswith("trainer: error: no NVIDIA GPU") and "ACCELERATOR=cpu" in line


@pytest.mark.parametrize(("accelerator", "count"), [("tpu", "auto"), ("cpu", "0"), ("cpu", "-1"), ("cpu", "two")])
def test_nonsense_devices_are_refused(accelerator: str, count: str) -> None:
    """Guards: a traceback, or a job of no processes."""
    with pytest.raises(UserError, match="ACCELERATOR|DEVICES"):
        devices.pick(accelerator, count)


def test_cpu_gets_as_many_processes_as_asked_for() -> None:
    """Guards: torchrun's `auto` starts one process per core where there is no GPU."""
    assert devices.pick("cpu", "auto").count == 1
    assert devices.pick("cpu", "3").count == 3


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "mlruns", "databricks"])
def test_a_tracking_uri_that_is_no_server_is_refused(lab: Lab, uri: str) -> None:
    """Guards: a job whose run goes to some local file that nobody looks at."""
    done = lab.run("fit", "--config", "configs/digits.yaml", MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 2 and f"MLFLOW_TRACKING_URI={uri}" in done.stdout


@pytest.mark.fault
def test_no_server_is_one_clear_line(lab: Lab) -> None:
    """Guards: minutes of retries, or a traceback, where no server answers."""
    uri = f"http://127.0.0.1:{free_port()}"
    done = lab.run("fit", "--config", "configs/digits.yaml", MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 2 and uri in done.stdout and "trainer server --detach" in done.stdout
    assert "Traceback" not in done.stdout


def test_the_server_is_left_alone_where_it_answers(lab: Lab) -> None:
    """Guards: a second server on the same database after a second `make train`."""
    done = lab.run("server", "--detach", "--port", lab.uri.rsplit(":", 1)[1])
    assert done.returncode == 0 and "answers" in done.stdout


def test_a_port_that_is_taken_is_said(tmp_path: object) -> None:
    """Guards: a training that reports to whatever happens to listen on port 8000."""
    port = free_port()
    other = subprocess.Popen([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)], cwd=str(tmp_path))
    try:
        for _ in range(50):
            done = subprocess.run(
                [TRAINER, "server", "--detach", "--port", str(port)], capture_output=True, text=True, cwd=str(tmp_path)
            )
            if "taken" in done.stderr:
                break
        assert done.returncode == 2 and f"port {port} is taken" in done.stderr and "PORT=" in done.stderr
    finally:
        other.kill()
        other.wait()
