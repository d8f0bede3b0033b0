"""The spool: what a job wrote to its run, one JSON object a line, in order, on disk before the writer goes on.

Two readers go through it, each with a place of its own: one for values (delivery.py), one for files (uploads.py).
"""

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from trainer.terminal import say

Record = dict[str, Any]
"""One of these, each with the "run_id" that it belongs to:

- values, the arguments of one `log_batch`: "metrics", "params" and "tags", lists of plain values;
- a file: "artifact", its path, and "copy", its folder in the outbox (outbox.py);
- another call to the server: "call" (calls.py), or "model", a logged model to be made;
- the end of a logged model, once its files are sent: "finalize", its id, and "status" (uploads.py).
"""


def is_values(record: Record) -> bool:
    return bool({"metrics", "params", "tags"} & record.keys())


def is_of_files(record: Record) -> bool:
    return bool({"artifact", "finalize"} & record.keys())


class Line(NamedTuple):
    """One line of the spool."""

    record: Record | None
    """None where the line is no valid record."""
    raw: bytes
    end: int
    """The offset behind it."""


def append(spool: Path, record: Record) -> None:
    """Append one record and return once it is on disk. Safe from several processes and threads at once.

    Raises:
        OSError: The record could not be written (disk full, say); nothing of it remains in the spool.
    """
    line = json.dumps(record).encode() + b"\n"
    with open(spool, "ab", buffering=0) as file:  # a buffer would write its rest at close, after the error
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        if end and not _ends_with_newline(spool, end):
            line = b"\n" + line  # a writer died in mid-line; its torn record must not swallow this one
        try:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


class SpoolWriter:
    """Appends records, and keeps them, and files, in memory, in order, while the disk takes none.

    Args:
        spool: The file.
        say: Called with one line for the user when the disk takes none, and when it does again.
    """

    def __init__(self, spool: Path, say: Callable[[str], None]) -> None:
        self._spool = spool
        self._say = say
        self._waiting: list[Callable[[], None]] = []
        self._full = False
        self._lock = threading.Lock()

    def append(self, record: Record) -> None:
        """Append one record, behind those that wait; on disk when this returns, or in memory where the disk is full."""
        self.do(partial(append, self._spool, record))

    def do(self, write: Callable[[], None]) -> None:
        """Call `write` when the disk takes what it writes, at once if it can be; it raises OSError until then."""
        with self._lock:
            self._waiting.append(write)
            self._write()

    def flush(self, patience: float) -> None:
        """Write what waits, trying again for `patience` seconds.

        Raises:
            OSError: The disk still takes none, and what waits will be lost with this process.
        """
        deadline = time.monotonic() + patience
        while self._waiting:
            with self._lock:
                error = self._write()
            if error is not None and time.monotonic() > deadline:
                raise OSError(error.errno, f"{len(self._waiting)} records could not be written: {error.strerror}")
            if error is not None:
                time.sleep(0.5)

    def _write(self) -> OSError | None:
        while self._waiting:
            try:
                self._waiting[0]()
            except OSError as error:
                if not self._full:
                    self._full = True
                    self._say(f"{self._spool} cannot be written ({error.strerror}); what is logged waits in memory")
                return error
            del self._waiting[0]
        if self._full:
            self._full = False
            self._say(f"{self._spool} can be written again")
        return None


@cache
def writer_of(spool: Path) -> SpoolWriter:
    """This process's one writer of a spool."""
    return SpoolWriter(spool, say)


def set_aside(refused: Path, lines: list[bytes]) -> None:
    """Keep lines that the server refuses for good where the user can find them."""
    with open(refused, "ab") as file:
        file.writelines(lines)


def _ends_with_newline(spool: Path, end: int) -> bool:
    with open(spool, "rb") as file:
        file.seek(end - 1)
        return file.read(1) == b"\n"


class SpoolReader:
    """Reads a spool from where the last delivery ended; the place is kept beside the spool.

    Args:
        spool: The file.
        place: The ending of the file that keeps the place.
    """

    def __init__(self, spool: Path, place: str = ".offset") -> None:
        self._spool = spool
        self._offset_file = spool.with_suffix(place)
        try:
            offset = int(self._offset_file.read_text())
            self._offset = offset if 0 <= offset <= spool.stat().st_size else 0
        except (FileNotFoundError, ValueError):  # a power loss may leave it empty; to deliver twice does no harm
            self._offset = 0

    def read(self, most: int) -> list[Line]:
        """Up to `most` complete lines that are not delivered yet.

        A last line without its newline is still being written and is left for the next time.
        """
        lines: list[Line] = []
        if not self._spool.exists():
            return lines
        with open(self._spool, "rb") as file:
            file.seek(self._offset)
            while len(lines) < most and (raw := file.readline()).endswith(b"\n"):
                lines.append(Line(_parse(raw), raw, file.tell()))
        return lines

    def delivered(self, offset: int) -> None:
        """Everything before `offset` has reached the server or was set aside.

        Where the disk is full the place is only remembered: a crash then repeats more than the last batch, which does
        no harm, and the delivery goes on.
        """
        self._offset = offset
        partial = self._offset_file.with_suffix(f"{self._offset_file.suffix}-partial")
        with contextlib.suppress(OSError):
            partial.write_text(str(offset))
            os.replace(partial, self._offset_file)


def records(spool: Path) -> Iterator[Record]:
    """Every whole record of a spool, delivered or not; none where there is no spool."""
    with contextlib.suppress(FileNotFoundError), open(spool, "rb") as file:
        for line in file:
            if (record := _parse(line)) is not None:
                yield record


def is_delivered(spool: Path, place: str = ".offset") -> bool:
    """Whether a reader has come to the end of what was written so far."""
    try:
        return int(spool.with_suffix(place).read_text()) >= spool.stat().st_size
    except (FileNotFoundError, ValueError):
        return False


def newest_timestamp(spool: Path) -> int | None:
    """The newest timestamp (in milliseconds) among the last metrics of a spool; None where there are none."""
    try:
        with open(spool, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16))
            records = [_parse(line) for line in file.readlines()]
    except FileNotFoundError:
        return None
    metrics = [metric for record in records if record for metric in record.get("metrics", [])]
    return max((int(metric["timestamp"]) for metric in metrics), default=None)


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and _is_whole(record) else None


def _is_whole(record: Record) -> bool:
    """Whether the values in it, if any, are what a disk or another program has left as they were."""
    try:
        for metric in record.get("metrics", []):
            _ = str(metric["key"]), int(metric["step"]), int(metric["timestamp"]), float(metric["value"])
        for value in [*record.get("params", []), *record.get("tags", [])]:
            _ = str(value["key"]), str(value["value"])
    except (KeyError, TypeError, ValueError):
        return False
    return isinstance(record.get("run_id"), str)
