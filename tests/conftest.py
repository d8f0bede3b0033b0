"""One stack in containers for every suite that drives it; its way out is cut once the images are built."""

import subprocess
from collections.abc import Iterator

import pytest

from compose import Stack, inspect
from harness import free_port


def rules_that_cut_off(stack: Stack) -> list[list[str]]:
    """iptables rules that drop what leaves the stack's networks for anywhere but themselves."""
    rules = []
    for name in ("frontend", "console"):
        (config,) = inspect(f"{stack.project}_{name}")["IPAM"]["Config"]
        rules.append(["DOCKER-USER", "-s", config["Subnet"], "!", "-d", config["Subnet"], "-j", "DROP"])
    # Put in last, so that it stands first: answers to the published ports go back to this machine.
    return [*rules, ["DOCKER-USER", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "RETURN"]]


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """A stack with built images and no way out; gone without a trace at the end."""
    stack = Stack(f"labtest{free_port()}", free_port(), free_port())
    rules: list[list[str]] = []
    try:
        stack.must("build", "mlflow", "trainer")
        stack.must("create", "mlflow", "trainer")
        for rule in rules_that_cut_off(stack):
            subprocess.run(["iptables", "-I", *rule], check=True)
            rules.append(rule)
        yield stack
    finally:
        for rule in rules:
            subprocess.run(["iptables", "-D", *rule], check=True)
        stack.must("down", "--volumes", "--timeout", "5")
        subprocess.run(["docker", "image", "rm", f"{stack.project}-mlflow", f"{stack.project}-trainer"], check=False)


@pytest.fixture(scope="session")
def trained(stack: Stack) -> str:
    """What `docker compose up trainer` printed."""
    return stack.must("up", "trainer")
