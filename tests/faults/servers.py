"""The servers of the stack, as a fault sees them: processes that crash, hang, and are away."""

import subprocess
import time
import urllib.request

import psutil

from compose import Stack, inspect
from harness import until

SERVERS = ("postgres", "minio", "mlflow")
"""In the order in which they start."""


class Servers:
    """Throws faults at the servers of a stack.

    Args:
        stack: One whose servers are up.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    @property
    def uri(self) -> str:
        return self._stack.uri

    def crash(self, service: str) -> None:
        """Kill a server's main process, and see the restart policy bring the container back.

        `docker kill` would not do: Docker takes that for the user's wish, and leaves the container as it is.
        """
        name = self._stack.container(service)
        state = inspect(name)
        restarts = state["RestartCount"]
        main = psutil.Process(state["State"]["Pid"])
        if state["HostConfig"].get("Init"):  # pid 1 is Docker's init, and the server its child
            (main,) = main.children()
        main.kill()
        until(lambda: inspect(name)["RestartCount"] > restarts, seconds=30)

    def freeze(self, service: str, seconds: float) -> None:
        """A server that takes connections and answers none."""
        name = self._stack.container(service)
        self._docker("pause", name)
        time.sleep(seconds)
        self._docker("unpause", name)

    def away(self, seconds: float, *services: str) -> None:
        """Servers that are gone for a while, and come back together."""
        self.stop(*services)
        time.sleep(seconds)
        self.start(*services)

    def stop(self, *services: str) -> None:
        self._docker("stop", "--time", "5", *map(self._stack.container, services))

    def start(self, *services: str) -> None:
        self._docker("start", *map(self._stack.container, services))

    def wait_until_well(self, seconds: float = 120) -> None:
        """Until the tracking server answers from its database and from its artifact store."""
        until(lambda: self._answers("mlflow/experiments/get?experiment_id=0"), seconds)
        until(lambda: self._answers("mlflow-artifacts/artifacts"), seconds)

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/api/2.0/{path}", timeout=10) as answer:
                return answer.status == 200
        except OSError:  # HTTPError, URLError and a reset are
            return False

    def _docker(self, *words: str) -> None:
        subprocess.run(["docker", *words], check=True, capture_output=True)
