"""Fixtures of every suite: a lab with a real MLflow server, and patience."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from harness import Lab, free_port


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
def until() -> Callable[..., None]:
    """Wait for something to become true."""

    def wait(condition: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not true within {seconds} s"
            time.sleep(0.1)

    return wait
