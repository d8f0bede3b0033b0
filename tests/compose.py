"""The stack of docker-compose.yml under a project name and ports of its own, as the container suites drive it."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

REPOSITORY = Path(__file__).parents[1]
QUICK = ("fit", "--config", "configs/digits.yaml", "--trainer.max_epochs", "2")


def why_no_engine() -> str | None:
    """Why the container suites cannot run here, in one line; None where they can."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    asked = subprocess.run(["docker", "info"], capture_output=True, text=True)
    if asked.returncode != 0:
        return f"no Docker Engine answers: {(asked.stderr.strip().splitlines() or ['no reason given'])[-1]}"
    return None


REASON = why_no_engine()
if REASON is None and (os.geteuid() != 0 or shutil.which("iptables") is None):
    REASON = "cutting the network takes root and iptables"
NEEDS_ENGINE = [
    pytest.mark.container,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(REASON is not None, reason=f"container suite skipped: {REASON}"),
]


@dataclass(frozen=True)
class Stack:
    """One Compose project.

    Args:
        project: Compose's project name.
        ui_port: Host port of the MLflow UI.
        console_port: Host port of the MinIO console.
    """

    project: str
    ui_port: int
    console_port: int

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "COMPOSE_PROJECT_NAME": self.project,
            "ACCELERATOR": "cpu",
            "EXPERIMENT": "digits",
            "DEVICES": "auto",
            "UI_PORT": str(self.ui_port),
            "CONSOLE_PORT": str(self.console_port),
            "MLFLOW_TRACKING_URI": "",  # the stack's own server, also where mlflow.set_tracking_uri has exported one
        }

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.ui_port}"

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def _call(self, words: tuple[str, ...], environment: dict[str, str]) -> dict[str, Any]:
        """The arguments of subprocess for `docker compose …`, its two outputs in one."""
        return {
            "args": ["docker", "compose", *words],
            "cwd": REPOSITORY,
            "env": {**self.environment, **environment},
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
        }

    def run(self, *words: str, timeout: float = 900, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `docker compose …` to its end."""
        return subprocess.run(**self._call(words, environment), timeout=timeout)

    def must(self, *words: str, **environment: str) -> str:
        """`docker compose …` that has to succeed; its output."""
        done = self.run(*words, **environment)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self, *words: str, **environment: str) -> "subprocess.Popen[str]":
        """Start `docker compose …`."""
        return subprocess.Popen(**self._call(words, environment))

    def inside(self, service: str, code: str) -> str:
        """Run Python in a running service that has it, or a shell line in one that has not; its output."""
        command = ["python3", "-c", code] if service == "mlflow" else ["sh", "-c", code]
        return self.must("exec", "-T", service, *command)

    def in_trainer(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run Python in a trainer container."""
        return self.run("run", "--rm", "-T", "--entrypoint", "python3", "trainer", "-c", code)

    def container(self, service: str) -> str:
        return self.must("ps", "--all", "--quiet", service).strip().splitlines()[-1]

    def inspect(self, service: str) -> dict[str, Any]:
        return inspect(self.container(service))

    def runs(self, experiment: str) -> list[Run]:
        found = self.client.get_experiment_by_name(experiment)
        return [] if found is None else list(self.client.search_runs([found.experiment_id]))


def inspect(name: str) -> dict[str, Any]:
    done = subprocess.run(["docker", "inspect", name], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)[0]
