"""The jobs of this lab and how each stands, from their folders alone: at once, and without a server."""

from datetime import datetime
from pathlib import Path

from trainer.lab import lab_dir
from trainer.tracking.job import Job
from trainer.tracking.server import run_url

STALE = "stale"
DAMAGED = (OSError, TypeError, ValueError)
"""What reading a folder raises that a disk, or another version of the trainer, has made unreadable."""


def all_jobs() -> list[Job]:
    """Every attempt at every job, the newest last."""
    folders = [folder for folder in (lab_dir() / "state").glob("*/*/") if (folder / "arguments.json").exists()]
    return [Job(folder) for folder in sorted(folders, key=_started)]


def stale_attempts(name: str | None = None) -> list[Job]:
    """The attempts at one job, or at any, that lost their launch with their run not closed, the newest last."""
    return [job for job in all_jobs() if name in (None, job.folder.parent.name) and _is_stale(job)]


def has_finished(job: Job) -> bool:
    """Whether a job came to its end, of which the server perhaps does not know."""
    end = job.end_record()
    return end.status == "FINISHED" if end else job.all_done()


def has_asked(job: Job) -> bool:
    """Whether a job has a run, or has asked the server for one."""
    return any((job.folder / file).exists() for file in ("run.json", "asking.json"))


def damaged() -> list[tuple[Job, Exception]]:
    """The jobs whose folders cannot be read, and why."""
    found: list[tuple[Job, Exception]] = []
    for job in filter(has_asked, all_jobs()):
        try:
            is_open(job)
        except DAMAGED as error:
            found.append((job, error))
    return found


def _is_stale(job: Job) -> bool:
    try:
        return is_open(job) and not job.is_claimed()
    except DAMAGED:
        return False  # see `damaged`


def is_open(job: Job) -> bool:
    """Whether the job has a run of which the server does not know all that it should."""
    end = job.end_record()
    return (job.run_record() or job.asking()) is not None and not (end and end.delivered)


def status(job: Job) -> str:
    """RUNNING, FINISHED, FAILED, KILLED, one of these "undelivered", or "stale" where launch left no word of it."""
    if job.is_claimed():
        return "RUNNING"
    end = job.end_record()
    if is_open(job):
        return f"{end.status}, undelivered" if end else STALE
    return end.status if end else "KILLED"  # launch vanished before there was a run


def table(every: bool = False) -> str:
    """One line for each job, the newest last.

    Args:
        every: Also those that ended before they had a run.
    """
    rows = [("RUN", "STATUS", "STARTED", "URL")]
    hidden = 0
    for job in all_jobs():
        try:
            run = job.run_record()
            if not (run or every or job.is_claimed()):
                hidden += 1
                continue
            url = "no run" if run is None else "not on the server yet" if run.promised else run_url(run)
            rows.append((job.run_name, status(job), f"{_started(job.folder):%Y-%m-%d %H:%M:%S}", url))
        except DAMAGED as error:  # one damaged folder must not hide the others
            rows.append((job.run_name, "unreadable", "", f"{job.folder}: {error}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)] + [0]
    lines = ["  ".join(f"{word:{width}}" for word, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(lines + ([f"and {hidden} that ended before they had a run (--all)"] if hidden else []))


def _started(folder: Path) -> datetime:
    try:
        return datetime.strptime(folder.name.removeprefix(f"{folder.parent.name}-")[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        return datetime.fromtimestamp(folder.stat().st_mtime)
