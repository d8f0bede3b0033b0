"""The command, the machine's name and the versions of what computes."""

import importlib.metadata
import platform
import shlex

PACKAGES = ("torch", "torchvision", "lightning", "mlflow", "trainer")


def environment_tags(command: list[str]) -> dict[str, str]:
    """Tags `mlflow.source.*` for the command, `environment.*` for what it ran in. Imports none of the packages."""
    tags = {
        "mlflow.source.name": shlex.join(command),
        "mlflow.source.type": "LOCAL",
        "environment.host": platform.node(),
        "environment.python": platform.python_version(),
        "environment.os": platform.platform(),
    }
    for package in PACKAGES:
        tags[f"environment.{package}"] = importlib.metadata.version(package)
    return tags
