"""The trainer in its container: cut off by a crash, then by `docker compose down`; `up trainer` goes on with it."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from compose import NEEDS_ENGINE, REPOSITORY, Stack
from faults.audit import audit
from faults.training import CONFIG
from harness import free_port, until

pytestmark = [pytest.mark.fault, *NEEDS_ENGINE]

# Nine epochs, so that there is something left after two cut-offs.
TRAINER = """
services:
  trainer:
    command: [fit, --config, /workspace/paced.yaml, --experiment, contained, --model.init_args.best_epoch, "6"]
    environment: { FAULT_TRUTH: /lab/state/truth }
"""


@pytest.fixture
def own_stack() -> Iterator[Stack]:
    """A stack that may go down, networks and all."""
    stack = Stack(f"labdown{free_port()}", free_port(), free_port())
    try:
        stack.must("build", "mlflow", "trainer")
        yield stack
    finally:
        stack.must("down", "--volumes", "--timeout", "5", "--rmi", "local")


def test_up_goes_on_after_a_crash_and_after_down(own_stack: Stack, tmp_path: Path) -> None:
    """Guards: a job whose state is in its container; a second run; servers that lose a run with their containers."""
    (tmp_path / "paced.yml").write_text(TRAINER)
    files = ("--file", str(REPOSITORY / "docker-compose.yml"), "--file", str(tmp_path / "paced.yml"))
    compose = ("--project-directory", str(REPOSITORY), *files)

    def up() -> "subprocess.Popen[str]":
        return own_stack.start(*compose, "up", "trainer", WORKSPACE=str(CONFIG.parent))

    up_to_the_crash = up()
    until(lambda: "mid-epoch 2" in marks(own_stack), seconds=180)
    os.kill(own_stack.inspect("trainer")["State"]["Pid"], signal.SIGKILL)
    up_to_the_crash.communicate(timeout=60)

    up_to_down = up()
    until(lambda: "mid-epoch 5" in marks(own_stack), seconds=180)
    own_stack.must(*compose, "down")
    first, _ = up_to_down.communicate(timeout=60)

    second, _ = up().communicate(timeout=240)
    for output in (first, second):
        assert "going on with paced-" in output and "going on after epoch" in output, output
    state = state_volume(own_stack)
    assert state is not None
    assert audit(own_stack.uri, "contained", state, state / "truth").problems == []
    assert own_stack.inspect("trainer")["State"]["ExitCode"] == 0


def state_volume(stack: Stack) -> Path | None:
    """The state volume as this machine sees it; None while there is none."""
    ask = ["docker", "volume", "inspect", "--format", "{{.Mountpoint}}", f"{stack.project}_state"]
    asked = subprocess.run(ask, capture_output=True, text=True)
    return Path(asked.stdout.strip()) if asked.returncode == 0 else None


def marks(stack: Stack) -> list[str]:
    state = state_volume(stack)
    file = None if state is None else state / "truth" / "marks"
    return file.read_text().splitlines() if file is not None and file.exists() else []
