"""Closes the runs of jobs that lost their launch: after a power loss, a kill -9, or an end without a server.

What such a job left in its spool and outbox is delivered first. Its end is the recorded one, or else the last sign of
life in its folder. Two who find the same job do not meet: whoever has the claim closes it.
"""

from collections.abc import Callable
from datetime import datetime

from mlflow.entities import Run, RunStatus
from mlflow.exceptions import MlflowException

from trainer.errors import UserError
from trainer.launch import jobs
from trainer.launch.closing import close_run
from trainer.tracking import runs, server, spool
from trainer.tracking.answers import in_one_line
from trainer.tracking.delivery import DELETED, NOT_THERE, Delivery
from trainer.tracking.job import EndRecord, Job, RunRecord

LOST = "lost: launch ended without a word (power loss, kill -9 or out of memory)"
PATIENCE_SECONDS = 30.0
SERVER_SECONDS = 5.0
"""How long `trainer sync` waits for a server to answer at all."""


def close_all(say: Callable[[str], None]) -> None:
    """Close every stale run of this lab.

    Raises:
        UserError: The server is away; what it has not got stays where it is.
    """
    found, damaged = jobs.stale_attempts(), jobs.damaged()
    for job, error in damaged:
        say(f"{job.folder} is damaged, so it is left as it is: {error}")
    if not found and not damaged:
        say("no stale run")
        return
    uri = server.tracking_uri()
    server.wait_for(uri, SERVER_SECONDS)
    kept = [job.run_name for job in found if not _close_or_say(job, uri, say)]
    if kept:
        raise UserError(f"{uri} did not take all of {', '.join(kept)}; nothing is lost, try again when it is well")
    if damaged:
        raise UserError(f"{len(damaged)} folder(s) cannot be read; mend or remove them")


def close_attempts(name: str, uri: str, say: Callable[[str], None]) -> None:
    """Close the stale runs of one job before its next start, which goes on whatever happens here."""
    for job in jobs.stale_attempts(name):
        _close_or_say(job, uri, say, tell_of_gone=False)


def _close_or_say(job: Job, uri: str, say: Callable[[str], None], tell_of_gone: bool = True) -> bool:
    try:
        return close(job, uri, say, tell_of_gone)
    except Exception as error:  # one job's damaged or unwritable folder is no reason not to see to the others
        say(f"{job.run_name} could not be closed: {error}")
        return False


def close(job: Job, uri: str, say: Callable[[str], None], tell_of_gone: bool = True) -> bool:
    """Close one stale run and say so.

    Args:
        job: Whose.
        uri: http(s) URL of the MLflow server.
        say: Called with a line for the user.
        tell_of_gone: Whether to say so of a run that the server has not, or not any more.

    Returns:
        Whether nothing is left to do here; False where the server is away, or has not the run.
    """
    if not job.claim():
        say(f"{job.run_name}: another process has it in hand")
        return True
    try:
        if not jobs.is_open(job):  # another process was faster
            return True
        delivery = Delivery(job, uri, lambda line: say(f"{job.run_name}: {line}"))
        try:
            if not delivery.find_run():
                _close_without_run(job, uri)
                return True
            run = job.run_record()
            if run is not None and run.promised and run.server != uri:
                return _without_run(job, run, uri, say if tell_of_gone else _nobody)
            delivery.open_run()
            run = job.run_record()
            assert run is not None, "found or recorded"
            there = delivery.run()
        except MlflowException as error:
            say(f"{job.run_name}: the server at {uri} {in_one_line(error)}")
            return False
        if there is None:
            return _without_run(job, run, uri, say if tell_of_gone else _nobody)
        if runs.is_deleted(there):
            if tell_of_gone:
                say(f"{job.run_name}: {DELETED}; left as it is (if it is not to be, remove {job.folder})")
            return False
        end = job.end_record() or _end_of(job, run, there)
        if not close_run(job, delivery, end, PATIENCE_SECONDS, say):
            return False
        how = f" ({end.tags['killed_by']})" if "killed_by" in end.tags else ""
        say(f"{job.run_name}: closed as {end.status}, ended {_local(end.end_time)}{how}")
        return True
    finally:
        job.release()


def _close_without_run(job: Job, uri: str) -> None:
    """For a job that died while it asked for a run, where the server that it asked has made none."""
    asked = job.asking()
    if asked is not None and asked[1] == uri:
        job.write_end_record(EndRecord("KILLED", None, int(job.folder.stat().st_mtime * 1000), {}, delivered=True))


def _end_of(job: Job, run: RunRecord, there: Run) -> EndRecord:
    """The end of a job whose launch left no word of it."""
    last_sign = max(run.start_time, _last_sign_of_life(job))
    status, end_time = RunStatus.from_string(there.info.status), there.info.end_time or 0
    # Launch got that far, or somebody has closed the run by hand; but not where the job has written on since.
    if RunStatus.is_terminated(status) and end_time >= last_sign:
        return EndRecord(there.info.status, None, end_time, {})
    if job.all_done():  # launch died before it could write that down
        return EndRecord("FINISHED", None, last_sign, {})
    return EndRecord("KILLED", None, last_sign, {"killed_by": LOST})


def _last_sign_of_life(job: Job) -> int:
    """The newest timestamp in the spool; its file's, where that is older or where it has none."""
    file = job.spool if job.spool.exists() else job.folder / "run.json"
    modified = int(file.stat().st_mtime * 1000)
    return min(modified, spool.newest_timestamp(job.spool) or modified)


def _without_run(job: Job, run: RunRecord, uri: str, say: Callable[[str], None]) -> bool:
    """Nothing can be closed; say which server has the run, or that it is gone."""
    if run.server != uri:
        where = f"; it was opened on {run.server}: MLFLOW_TRACKING_URI={run.server} trainer sync" if run.server else ""
        say(f"{job.run_name}: its run is not on {uri}{where}")
    else:
        say(f"{job.run_name}: {NOT_THERE}; left as it is (only in the latter case: remove {job.folder})")
    return False


def _nobody(line: str) -> None:
    return None


def _local(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000):%Y-%m-%d %H:%M:%S}"
