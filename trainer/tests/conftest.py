"""A lab with a real MLflow server, for every test that wants one."""

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from harness import Lab, free_port

# What `nohup` or `&` in a script has made the tests ignore, the processes that they start would ignore too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with the embedded server, started and stopped by the commands that users type."""
    port = free_port()
    lab = Lab(tmp_path_factory.mktemp("lab"), f"http://127.0.0.1:{port}")
    started = lab.run("server", "--detach", "--port", str(port))
    assert started.returncode == 0, started.stdout
    yield lab
    stopped = lab.run("server", "--stop")
    assert "stopped" in stopped.stdout
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "the port is still taken after `trainer server --stop`"


@pytest.fixture
def own_http_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delivery sets MLflow's HTTP settings for its process; here that is pytest's."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    monkeypatch.setenv(name, os.environ.get(name, "7"))


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """What launch tells a worker that is alone."""
    monkeypatch = pytest.MonkeyPatch()
    for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("ACCELERATOR", "cpu")
    monkeypatch.setattr("sys.argv", ["trainer"])
    yield
    monkeypatch.undo()
