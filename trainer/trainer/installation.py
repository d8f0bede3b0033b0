"""Whether the environment was installed from the code that runs in it."""

import importlib.metadata
import tomllib
from pathlib import Path

from trainer.errors import UserError

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def require_current(pyproject: Path = PYPROJECT) -> None:
    """Refuse to work where the installed metadata is older than the code.

    The code is mounted over the image, or edited in place, but Lightning and MLflow find its callbacks and stores by
    the metadata that was written when it was installed: where they lack, all that they guard against is silently back.

    Args:
        pyproject: The code's own; where it was installed without one there is nothing to compare.

    Raises:
        UserError: An entry point is missing.
    """
    if not pyproject.exists():
        return
    wanted = tomllib.loads(pyproject.read_text())["project"]["entry-points"]
    installed = {
        (point.group, point.name, point.value) for point in importlib.metadata.distribution("trainer").entry_points
    }
    for group, points in wanted.items():
        for name, value in points.items():
            if (group, name, value) not in installed:
                raise UserError(
                    f"this environment was installed from an older version of the code (it lacks {group}: {name}): "
                    "`docker compose build trainer`, or without Docker `make server`, brings it up to date"
                )
