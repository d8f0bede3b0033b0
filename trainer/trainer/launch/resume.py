"""Finds the job that the same command goes on with: one that was cut off, by whatever it was."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

from trainer.errors import UserError
from trainer.launch import jobs
from trainer.tracking import server
from trainer.tracking.job import Job

ResumeMode = Literal["auto", "must", "never"]
USER_ERROR = 2
"""The exit code of a job that a mistake in what it was given has ended."""


class Wanted(NamedTuple):
    """What a command starts; by all but the arguments a job is known again."""

    name: str
    experiment: str
    uri: str
    """Of the MLflow server."""
    sources: list[str]
    """Where its configuration is from (workspace.sources)."""
    arguments: list[str]


def claim_cut_off(wanted: Wanted, mode: ResumeMode, offline: bool, say: Callable[[str], None]) -> Job | None:
    """Take the newest attempt at a job into this process's hands, where it was cut off.

    One that had come to the end of its training and is not delivered, since launch died or gave up, counts too, but
    only for the very same command; where that had said 0 to its user, the job is over.

    Args:
        wanted: What the command starts.
        mode: "auto" takes one where there is one, "must" demands one, "never" takes none.
        offline: Whether it is to start without a server.
        say: Called with a line for the user.

    Returns:
        The job, claimed; None where a new one is to start.

    Raises:
        UserError: One is demanded, and there is none; or the server does not know its run.
    """
    job = None if mode == "never" else _newest(wanted, say)
    if job is None or _is_over(job, wanted, offline):
        job = None
    elif not job.claim():
        if mode == "must":
            raise UserError(f"{job.run_name} is running: another process has it in hand")
        say(f"{job.run_name} is running in another process; this starts one more run")
        job = None
    elif _is_over(job, wanted, offline) or not _can_go_on(job, wanted, say):  # over: another process was faster
        job.release()
        job = None
    if job is None and mode == "must":
        raise UserError(
            f"there is no job {wanted.name} in experiment {wanted.experiment} on {wanted.uri} that was cut off, so "
            "there is nothing to go on with; without --resume must a new one starts"
        )
    return job


def _newest(wanted: Wanted, say: Callable[[str], None]) -> Job | None:
    """The newest attempt at this very job."""
    for job in reversed(jobs.all_jobs()):
        if job.folder.parent.name != wanted.name or not jobs.has_asked(job):
            continue
        try:
            if _is(job, wanted):
                return job
        except jobs.DAMAGED as error:
            say(f"{job.folder} is damaged, so a new run starts: {error}")
            return None
    return None


def _is(job: Job, wanted: Wanted) -> bool:
    run = job.run_record()
    job.end_record()  # raises where it is damaged
    return (
        job.arguments()[:1] == ["fit"]
        and job.sources() in (None, wanted.sources)
        and (run is None or run.experiment == wanted.experiment)
    )


def _is_over(job: Job, wanted: Wanted, offline: bool) -> bool:
    if not jobs.has_finished(job):
        return False
    end = job.end_record()
    said_0 = end is not None and (end.delivered or end.exit_code == 0)
    return said_0 or offline or job.arguments() != wanted.arguments


def _can_go_on(job: Job, wanted: Wanted, say: Callable[[str], None]) -> bool:
    end = job.end_record()
    if end is not None and end.exit_code == USER_ERROR and not any(job.checkpoints.glob("*.ckpt")):
        return False  # it had not begun
    run = job.run_record()
    elsewhere = run is not None and run.server != wanted.uri
    if not server.answers(wanted.uri, server.PROBE_SECONDS) or (elsewhere and run.promised):
        if elsewhere:
            say(f"{job.run_name} was cut off too, but with {run.server}: a new run starts on {wanted.uri}")
        return run is not None and not elsewhere
    from mlflow.exceptions import MlflowException  # takes seconds to load: only where a job was cut off

    from trainer.tracking import runs
    from trainer.tracking.delivery import Delivery

    delivery = Delivery(job, wanted.uri, lambda line: None)
    try:
        found = delivery.find_run()
        run = job.run_record()
        if not found or run is None or run.experiment != wanted.experiment:
            return False
        if run.promised:
            return True
        there = delivery.run()
    except MlflowException:  # the server is away
        return run is not None and not elsewhere
    if there is None and elsewhere:
        say(f"{job.run_name} was cut off too, but with {run.server}: a new run starts on {wanted.uri}")
        return False
    if there is None:
        raise UserError(
            f"the server at {wanted.uri} does not know the run of {job.run_name}, which was cut off: another one has "
            "taken its place, or the run was deleted for good; put that right, or start a new run with --new"
        )
    if runs.is_deleted(there):
        say(f"the run of {job.run_name} was deleted on the server, so a new one starts")
        return False
    if elsewhere:  # the same server by another name
        job.write_run_record(replace(run, server=wanted.uri))
    return True
