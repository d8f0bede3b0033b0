"""Where everything that the lab writes is kept."""

import os
from pathlib import Path


def lab_dir() -> Path:
    """The one folder that everything is written to: `LAB_DIR`, by default `lab` in the current folder."""
    return Path(os.environ.get("LAB_DIR") or "lab").resolve()
