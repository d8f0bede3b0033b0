"""The outbox: files that a job logged, as they were then, until the server has them.

`outbox/<copy>/<path>`, each named by a record in the spool: the path is one among the run's artifacts, or among those
of a logged model. Nothing here waits for the server.
"""

import hashlib
import os
import posixpath
import secrets
import shutil
import time
from pathlib import Path

from trainer.tracking import spool
from trainer.tracking.job import Job
from trainer.whole_file import sync_folder


def put(job: Job, run_id: str, file: Path | bytes, path: str, to: str = "", replaces: bool = False) -> None:
    """Keep a copy of a file for the server, on disk when this returns.

    Args:
        job: Whose outbox.
        run_id: The job's run.
        file: What to copy, or its content.
        path: Where it goes among the artifacts.
        to: URI of a logged model's artifacts; by default those of the run.
        replaces: Whether those of the same path that still wait need not be sent any more. Such a file is linked where
            it can be, so it must never be written into.

    Raises:
        OSError: The file cannot be read, or the copy not be written; nothing of it remains.
    """
    name = f"{time.time_ns()}-{secrets.token_hex(4)}{_mark(to)}"  # sorts by time
    folder = job.outbox / name
    copy = folder / path
    try:
        copy.parent.mkdir(parents=True)
        # What is linked is on disk; where a power loss takes the link, the next start puts the file here once more.
        if not (replaces and isinstance(file, Path) and _linked(file, copy)):
            _copied(file, copy, job.folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        spool.append(job.spool, {"run_id": run_id, "artifact": path, "copy": name, "to": to, "replaces": replaces})
    except OSError:  # at anything else, a signal say, the record may be written and the copy must stay
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _copied(file: Path | bytes, copy: Path, top: Path) -> None:
    if isinstance(file, bytes):
        copy.write_bytes(file)
    else:
        shutil.copyfile(file, copy)
    with open(copy, "rb") as written:
        os.fsync(written.fileno())
    for parent in copy.parents:
        sync_folder(parent)
        if parent == top:
            return


def _linked(file: Path, copy: Path) -> bool:
    try:
        os.link(file, copy)
    except OSError:  # another file system, or one without links
        return False
    return True


def _mark(to: str) -> str:
    """The end of a copy's name that tells the artifacts of one logged model from the run's."""
    return f"@{hashlib.sha256(to.encode()).hexdigest()[:16]}" if to else ""


def was_put(job: Job, path: str) -> bool:
    """Whether a file of this path was ever kept for the server, by this start of the job or an earlier one."""
    return any(record.get("artifact") == path and not record.get("to") for record in spool.records(job.spool))


def find(job: Job, path: str, to: str = "") -> Path | None:
    """The newest copy of an artifact that still waits, or None."""
    return next((copy / path for copy in _newest_first(job, to) if (copy / path).is_file()), None)


def children(job: Job, folder: str, to: str = "") -> dict[str, int | None]:
    """The artifacts that wait directly under a folder: path to size, or to None for a folder."""
    found: dict[str, int | None] = {}
    for copy in _newest_first(job, to):
        try:
            for child in (copy / folder).iterdir():
                found.setdefault(posixpath.join(folder, child.name), None if child.is_dir() else child.stat().st_size)
        except (FileNotFoundError, NotADirectoryError):  # sent meanwhile, or no folder in this copy
            continue
    return found


def clear(job: Job) -> None:
    """Remove what a writer that died in mid-copy left; only once all that the spool names is delivered."""
    shutil.rmtree(job.outbox, ignore_errors=True)


def _newest_first(job: Job, to: str) -> list[Path]:
    copies = job.outbox.iterdir() if job.outbox.is_dir() else []
    return sorted((copy for copy in copies if copy.name.partition("@")[2] == _mark(to)[1:]), reverse=True)
