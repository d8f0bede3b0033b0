"""Where everything that the lab writes is kept."""

import os
from pathlib import Path


def lab_dir() -> Path:
    """The one folder that everything is written to: `LAB_DIR`, by default `lab` in the repository.

    Where the package was installed without its repository it is `lab` in the current folder.
    """
    repository = Path(__file__).resolve().parents[2]
    default = repository / "lab" if (repository / "docker-compose.yml").exists() else Path("lab")
    return Path(os.environ.get("LAB_DIR") or default).resolve()
