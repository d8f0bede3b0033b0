"""Lines for the user, beside whatever else is on the terminal."""

import contextlib
import io
import os
import sys


def say(line: str) -> None:
    """Print one line to standard error.

    On a terminal a progress bar may stand in the line. The reader may be gone (`| head`, a closed terminal): the job
    goes on, and its run is closed all the same.
    """
    with contextlib.suppress(OSError):
        print(("\r\033[K" if sys.stderr.isatty() else "") + f"trainer: {line}", file=sys.stderr, flush=True)


def outlive_the_reader() -> None:
    """From here on nothing that this process prints ends it: what cannot be written, whatever the reason, is dropped.

    Else a closed terminal, a `tee` that is gone or a full disk under a log would end a training.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: else the next file that is opened, here or in a child, would take its place
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _dropping(sys.stdout or open(1, "w", closefd=False))  # noqa: SIM115
    sys.stderr = _dropping(sys.stderr or open(2, "w", closefd=False))  # noqa: SIM115


def _dropping(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    with contextlib.suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Dropping(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Dropping(io.FileIO):
    def write(self, data: bytes) -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError:
            return len(data)
