"""What the tests of the reference workload share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from image_folders import write_images


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """A dataset of three classes."""
    return write_images(tmp_path / "images")


@pytest.fixture
def one_line() -> Callable[[BaseException], str]:
    """The message of an error, after a check that it is one line."""

    def check(error: BaseException) -> str:
        message = str(error)
        assert message and "\n" not in message
        return message

    return check
