"""Finds the job that the same command goes on with: one that was cut off, by whatever it was."""

from collections.abc import Callable
from typing import Literal

from trainer.errors import UserError
from trainer.launch import jobs
from trainer.tracking import server
from trainer.tracking.job import Job, RunRecord

ResumeMode = Literal["auto", "must", "never"]
USER_ERROR = 2
"""The exit code of a job that a mistake in what it was given has ended."""


def close_finished(name: str, experiment: str, uri: str, resume: ResumeMode, say: Callable[[str], None]) -> bool | None:
    """Deliver what the newest attempt at a job has left, where launch died, or gave up, after the training's end.

    Args:
        name: The job's name.
        experiment: It must have been in this MLflow experiment,
        uri: on this server.
        resume: Whether the user wants to go on with it at all.
        say: Called with a line for the user.

    Returns:
        Whether the server knows all of it now; None where there is no such attempt.
    """
    job = None if resume == "never" else jobs.cut_off(name)
    if job is None or not jobs.has_finished(job) or not _is(job, experiment, uri):
        return None
    from trainer.launch import stale

    say(
        f"{job.run_name} has finished its training; what the server does not know yet is delivered (--new starts a run)"
    )
    return stale.close(job, uri, say)


def claim_cut_off(name: str, experiment: str, uri: str, resume: ResumeMode, say: Callable[[str], None]) -> Job | None:
    """Take the newest attempt at a job into this process's hands, where it was cut off.

    Args:
        name: The job's name.
        experiment: It must have been in this MLflow experiment,
        uri: on this server.
        resume: "auto" takes one where there is one, "must" demands one, "never" takes none.
        say: Called with a line for the user.

    Returns:
        The job, claimed and reopened; None where a new one is to start.

    Raises:
        UserError: One is demanded, and there is none.
    """
    if resume == "never":
        return None
    job = jobs.cut_off(name)
    if job is not None and job.claim():
        if _goes_on(job, experiment, uri, say):
            say(f"going on with {job.run_name}, which was cut off (--new starts a new run)")
            job.reopen()
            return job
        job.release()
    if resume == "must":
        raise UserError(
            f"there is no job {name} in experiment {experiment} on {uri} that was cut off, so there is nothing to go "
            "on with; without --resume must a new one starts"
        )
    return None


def _goes_on(job: Job, experiment: str, uri: str, say: Callable[[str], None]) -> bool:
    try:
        return _can_go_on(job, experiment, uri, say)
    except jobs.DAMAGED as error:
        say(f"{job.folder} is damaged, so a new run starts: {error}")
        return False


def _can_go_on(job: Job, experiment: str, uri: str, say: Callable[[str], None]) -> bool:
    run, end = _run_of(job, uri), job.end_record()
    if run is None or not _is(job, experiment, uri):
        return False
    if end is not None and end.exit_code == USER_ERROR and not any(job.checkpoints.glob("*.ckpt")):
        return False  # it had not begun
    if not run.promised and _was_deleted(job, uri):
        say(f"the run of {job.run_name} was deleted on the server, so a new one starts")
        return False
    return True


def _is(job: Job, experiment: str, uri: str) -> bool:
    run = job.run_record()
    return run is not None and (run.experiment, run.server) == (experiment, uri) and job.arguments()[0] == "fit"


def _run_of(job: Job, uri: str) -> RunRecord | None:
    """The job's run, be it that the server has made it and the job died before it could write that down."""
    if job.run_record() is not None or not server.answers(uri, server.PROBE_SECONDS):
        return job.run_record()
    from mlflow.exceptions import MlflowException

    from trainer.tracking.delivery import Delivery

    try:
        Delivery(job, uri, lambda line: None).find_run()
    except MlflowException:  # the server is away
        return None
    return job.run_record()


def _was_deleted(job: Job, uri: str) -> bool:
    if not server.answers(uri, server.PROBE_SECONDS):
        return False
    from mlflow.entities import LifecycleStage  # MLflow takes seconds to load: only where a job was cut off
    from mlflow.exceptions import MlflowException

    from trainer.tracking.delivery import Delivery

    try:
        run = Delivery(job, uri, lambda line: None).run()
    except MlflowException:  # the server is away
        return False
    return run is None or run.info.lifecycle_stage != LifecycleStage.ACTIVE
