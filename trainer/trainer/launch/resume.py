"""Finds the job that the same command goes on with: one that was cut off, by whatever it was."""

import contextlib
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
    job = None if mode == "never" else _claim_newest(wanted, mode, offline, say)
    if job is None and mode == "must":
        raise UserError(
            f"there is no job {wanted.name} in experiment {wanted.experiment} on {wanted.uri} that was cut off, so "
            "there is nothing to go on with; without --resume must a new one starts"
        )
    return job


def _claim_newest(wanted: Wanted, mode: ResumeMode, offline: bool, say: Callable[[str], None]) -> Job | None:
    for job in reversed(jobs.all_jobs()):
        if job.folder.parent.name != wanted.name or not jobs.has_asked(job):
            continue
        try:
            if not _is(job, wanted):
                continue
            if _is_over(job, wanted, offline):
                return None
        except jobs.DAMAGED as error:
            say(f"{job.folder} is damaged, so a new run starts: {error}")
            return None
        if not job.claim():
            if mode == "must":
                raise UserError(f"{job.run_name} is running: another process has it in hand")
            say(f"{job.run_name} is running in another process; this starts one more run")
            return None
        if _is_over(job, wanted, offline):  # another process was faster
            job.release()
            return None
        if _has_begun(job, wanted):
            if _can_go_on(job, wanted, say):
                return job
            job.release()
            return None
        job.release()
    return None


def _is(job: Job, wanted: Wanted) -> bool:
    if job.sources() not in (None, wanted.sources) or job.arguments()[:1] != ["fit"]:
        return False
    run = job.run_record()
    return run is None or run.experiment == wanted.experiment


def _is_over(job: Job, wanted: Wanted, offline: bool) -> bool:
    if not jobs.has_finished(job):
        return False
    end = job.end_record()
    said_0 = end is not None and (end.delivered or end.exit_code == 0)
    return said_0 or offline or job.arguments() != wanted.arguments


def _has_begun(job: Job, wanted: Wanted) -> bool:
    """Whether there is something to go on with: a run, and no mistake at the very start."""
    end = job.end_record()
    if end is not None and end.exit_code == USER_ERROR and not any(job.checkpoints.glob("*.ckpt")):
        return False
    if job.run_record() is None and server.answers(wanted.uri, server.PROBE_SECONDS):
        from mlflow.exceptions import MlflowException  # takes seconds to load: only where a job died while it asked

        from trainer.tracking.delivery import Delivery

        with contextlib.suppress(MlflowException):  # the server is away
            Delivery(job, wanted.uri, lambda line: None).find_run()
    run = job.run_record()
    return run is not None and run.experiment == wanted.experiment


def _can_go_on(job: Job, wanted: Wanted, say: Callable[[str], None]) -> bool:
    """Whether the server has the job's run, or will make it.

    Raises:
        UserError: It is the job's server by its URL, and does not know the run.
    """
    run = job.run_record()
    assert run is not None, "a job that has begun has one"
    elsewhere = run.server != wanted.uri
    there = None
    if not run.promised and server.answers(wanted.uri, server.PROBE_SECONDS):
        from mlflow.exceptions import MlflowException

        from trainer.tracking import runs
        from trainer.tracking.delivery import Delivery

        try:
            there = Delivery(job, wanted.uri, lambda line: None).run()
        except MlflowException:  # the server is away
            return not elsewhere
        if there is None and not elsewhere:
            raise UserError(
                f"the server at {wanted.uri} does not know the run of {job.run_name}, which this command would go on "
                "with: another one has taken its place, or the run was deleted for good; put that right, or start a "
                "new run with --new"
            )
        if there is not None and runs.is_deleted(there):
            say(f"the run of {job.run_name} was deleted on the server, so a new one starts")
            return False
    if elsewhere and there is None:
        say(f"{job.run_name} was cut off too, but with {run.server}: a new run starts on {wanted.uri}")
        return False
    if elsewhere:  # the same server by another name
        job.write_run_record(replace(run, server=wanted.uri))
    return True
