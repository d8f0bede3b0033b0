"""How a failed rank tells launch, which outlives it, what went wrong: one file for each rank.

Where the workers are started again (torchrun's --max-restarts), each start but the first has a folder of its own.
"""

import json
import os
import sys
import sysconfig
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.errors import UserError

LOG_LINES = 200


@dataclass(frozen=True)
class Failure:
    """What ended one rank."""

    rank: int
    line: str
    """One line for the terminal."""
    user_error: bool
    """Whether the user can mend it: then the line alone says all."""
    time: float
    """Seconds since the epoch; the first failure is the cause, later ones may follow from it."""


def of_this_start(folder: Path) -> Path:
    """Where a worker of this start of the workers writes, in the job's folder for failures."""
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return folder if restart == "0" else folder / f"restart-{restart}"


def write(folder: Path, rank: int, error: BaseException) -> None:
    """Write `rank-N.json` and, with the traceback, `rank-N.txt`; on a full disk, the traceback to standard error."""
    trace = "".join(traceback.format_exception(error))
    user_error = isinstance(error, UserError)
    said = str(error) if user_error else traceback.format_exception_only(error)[-1] + place(error)
    line = " ".join(said.split())
    try:
        note(folder, rank, line, user_error)
        (folder / f"rank-{rank}.txt").write_text(trace)
    except OSError:
        print(f"{trace}trainer: rank {rank}: {line}", file=sys.stderr)


def place(error: BaseException) -> str:
    """Where in the user's own code an exception comes from: ` (train.py, line 24)`, or nothing."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(Path(frame.filename))]
    return f" ({_short(Path(frames[-1].filename))}, line {frames[-1].lineno})" if frames else ""


def _short(file: Path) -> str:
    """A module's file as it is found on the import path: net.py, package/net.py."""
    folders = [folder for folder in sys.path if folder and file.is_relative_to(folder)]
    return str(file.relative_to(max(folders, key=len))) if folders else file.name


def _is_users(file: Path) -> bool:
    """Neither Python's own, nor an installed package's, nor ours."""
    installed = "site-packages" in file.parts or "dist-packages" in file.parts
    others = (Path(sysconfig.get_path("stdlib")), Path(__file__).parent)
    return file.is_file() and not installed and not any(file.is_relative_to(folder) for folder in others)


def note(folder: Path, rank: int, line: str, user_error: bool = False) -> None:
    """Write `rank-N.json`, unless there is one: what follows from a first failure is not its cause."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"rank-{rank}.json"
    if file.exists():
        return
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(Failure(rank, line, user_error, time.time()))))
    partial.replace(file)  # whole or not at all, on a full disk too


def first(folder: Path) -> Failure | None:
    """The earliest failure of the last start; a user's mistake before any error that may follow from it."""
    failures = [Failure(**json.loads(file.read_text())) for file in _last_start(folder).glob("rank-*.json")]
    return min(failures, key=lambda failure: (not failure.user_error, failure.time), default=None)


def _last_start(folder: Path) -> Path:
    return max(folder.glob("restart-*"), key=lambda start: int(start.name.rpartition("-")[2]), default=folder)


def reports(folder: Path, logs: Path) -> list[Path]:
    """What there is to read about each rank: its traceback; else, of a rank that a signal ended, its last words.

    Args:
        folder: Where the ranks wrote; gets a `rank-N.log` with the end of what a rank without a traceback printed.
        logs: What the ranks but local rank 0 printed, as torchrun lays it out: `*/attempt_N/<rank>/stderr.log`.
    """
    folder = _last_start(folder)
    for log in sorted(logs.glob("*/attempt_*/*/stderr.log")):  # a later attempt's log is written over an earlier one's
        rank = log.parent.name
        if not (folder / f"rank-{rank}.txt").exists() and (end := _end_of(log)):
            folder.mkdir(exist_ok=True)
            (folder / f"rank-{rank}.log").write_text(end)
    return sorted(folder.glob("rank-*.txt")) + sorted(folder.glob("rank-*.log"))


def _end_of(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2**20))
        lines = file.read().decode(errors="replace").splitlines()
    return "".join(f"{line}\n" for line in lines[-LOG_LINES:])
