"""Lines for the user, beside whatever else is on the terminal."""

import contextlib
import sys


def say(line: str) -> None:
    """Print one line to standard error.

    On a terminal a progress bar may stand in the line. The reader may be gone (`| head`, a closed terminal): the job
    goes on, and its run is closed all the same.
    """
    with contextlib.suppress(OSError):
        print(("\r\033[K" if sys.stderr.isatty() else "") + f"trainer: {line}", file=sys.stderr, flush=True)
