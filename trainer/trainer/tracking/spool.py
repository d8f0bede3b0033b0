"""The spool: what a job wrote to its run, one JSON object a line, in order, on disk before the writer goes on."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

Record = dict[str, Any]
"""`{"run_id": …, "metrics": […], "params": […], "tags": […]}`: the arguments of one `log_batch`, as plain values."""


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


def _ends_with_newline(spool: Path, end: int) -> bool:
    with open(spool, "rb") as file:
        file.seek(end - 1)
        return file.read(1) == b"\n"


class SpoolReader:
    """Reads a spool from where the last delivery ended; the place is kept beside the spool."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._offset_file = spool.with_suffix(".offset")
        self._offset = int(self._offset_file.read_text()) if self._offset_file.exists() else 0

    def read(self, most: int) -> tuple[list[tuple[Record | None, bytes]], int]:
        """Up to `most` complete lines that are not delivered yet, and the offset behind them.

        Each line comes as the record and its bytes; the record is None where the line is no valid record.
        A last line without its newline is still being written and is left for the next time.
        """
        records: list[tuple[Record | None, bytes]] = []
        end = self._offset
        if not self._spool.exists():
            return records, end
        with open(self._spool, "rb") as file:
            file.seek(self._offset)
            while len(records) < most and (line := file.readline()).endswith(b"\n"):
                end = file.tell()
                if line.strip():
                    records.append((_parse(line), line))
        return records, end

    def delivered(self, offset: int) -> None:
        """Everything before `offset` has reached the server or was set aside."""
        partial = self._offset_file.with_suffix(".partial")
        partial.write_text(str(offset))
        os.replace(partial, self._offset_file)
        self._offset = offset


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "run_id" in record else None
