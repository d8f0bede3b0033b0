"""Closes a job's run with how the job ended: by launch at the end, or by whoever finds a job that lost its launch."""

from collections.abc import Callable
from dataclasses import replace

from mlflow.entities import RunStatus, RunTag
from mlflow.exceptions import MlflowException

from trainer import failure
from trainer.tracking import outbox, spool
from trainer.tracking.batches import record_of
from trainer.tracking.delivery import Delivery
from trainer.tracking.job import EndRecord, Job, RunRecord
from trainer.tracking.schemes import MAX_TAG_LENGTH


def close_run(
    job: Job,
    delivery: Delivery,
    end: EndRecord,
    patience: float,
    say: Callable[[str], None],
    give_up: Callable[[], bool] = lambda: False,
) -> bool:
    """Record the end in the job's folder, deliver everything, and set the run's status; the caller has the claim.

    Args:
        job: A job whose workers are gone.
        delivery: Of this job.
        end: How it ended.
        patience: Seconds to wait for a server that is away.
        say: Called with a line for the user.
        give_up: Asked while it waits; True ends that.

    Returns:
        Whether the server knows all of it. If not, the job's folder keeps the rest, and this can be called again.
    """
    try:
        delivery.find_run()
    except MlflowException as error:
        say(f"whether the server has made a run is not known: {' '.join(str(error.message).split())[:200]}")
        job.write_end_record(end)
        return False
    run = job.run_record()
    try:
        # The exit code stands there once it is sure to be returned: resume.py goes by what the user was told.
        known = job.end_record()
        told = known.exit_code if known else None
        job.write_end_record(replace(end, delivered=True) if run is None else replace(end, exit_code=told))
        if run is not None:
            _append_last_words(job, run, end)
    except OSError as error:  # a full disk keeps the reason from being told, not the status
        say(f"how the job ended could not be written to {job.folder}: {error.strerror}")
    if run is None:
        return True
    if not delivery.close(RunStatus.from_string(end.status), patience, give_up, end.end_time):
        return False
    try:
        job.write_end_record(replace(end, delivered=True))
    except OSError as error:
        say(f"{job.folder} cannot say that the run is closed: {error.strerror}; `trainer sync` will")
    outbox.clear(job)
    return True


def _append_last_words(job: Job, run: RunRecord, end: EndRecord) -> None:
    tags = [RunTag(key, value[:MAX_TAG_LENGTH]) for key, value in end.tags.items()]
    spool.append(job.spool, record_of(run.run_id, [], [], tags))
    if end.status == RunStatus.to_string(RunStatus.FAILED):
        for report in failure.reports(job.failures, job.logs):
            outbox.put(job, run.run_id, report, f"failures/{report.name}")
