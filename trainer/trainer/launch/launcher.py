"""A training job from its command to its end: one run, one status, one exit code."""

import contextlib
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import installation, provenance
from trainer.errors import UserError
from trainer.lab import lab_dir
from trainer.launch import jobs
from trainer.launch.devices import Devices
from trainer.launch.resume import USER_ERROR, ResumeMode, Wanted, claim_cut_off
from trainer.launch.workers import Ending, Workers
from trainer.terminal import say
from trainer.tracking import server
from trainer.tracking.job import Job
from trainer.tracking.schemes import JOB_SCHEME, SERVER_VARIABLE

if TYPE_CHECKING:
    from trainer.launch.run import JobRun

POLL_SECONDS = 0.2
WORKERS_RETRIES = os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
"""MLflow's default, 7, keeps a worker waiting for minutes where it can go on without the server."""
LAST_DELIVERY_SECONDS = 300.0
"""How long the end of a job waits for a tracking server that is away."""
LAST_DELIVERY_SECONDS_KILLED = 30.0
"""The same for a job that was told to end; with the workers' grace it fits into Compose's stop_grace_period."""
LAST_DELIVERY_SECONDS_OFFLINE = 5.0
"""The same for a job that was started without one."""


def launch(
    name: str,
    arguments: list[str],
    devices: Devices,
    experiment: str | None,
    code: Path | None = None,
    sources: Sequence[str] = (),
    resume: ResumeMode = "auto",
    max_restarts: int = 0,
    offline: bool = False,
) -> int:
    """Run one training job and return its exit code.

    Args:
        name: The job's name; runs are named after it.
        arguments: What the workers get: `["fit", …]` or `["run", …]`.
        devices: What the job runs on.
        experiment: MLflow experiment; by default the job's name.
        code: The folder of the user's own code, whose commit is recorded too.
        sources: What tells this job from another one of the same name (workspace.sources).
        resume: Whether to go on with this job where it was cut off.
        offline: Start also where the server does not answer; what the job writes is delivered when it does.
        max_restarts: How often the workers are started again when one of them has failed.

    Returns:
        0 for FINISHED, 1 for FAILED (and where the server does not know all of a job that was not started offline), 2
        for a user's mistake, 128 + the signal for KILLED (143, 130 for Ctrl-C).

    Raises:
        UserError: The job cannot be started.
    """
    start = time.monotonic()
    installation.require_current()
    uri = server.tracking_uri()
    if not offline:
        server.wait_for(uri, say=say)
    _check(name)
    experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or name
    if not offline:
        server.require_active(uri, experiment)
    wanted = Wanted(name, experiment, uri, list(sources), arguments)
    try:
        cut_off = claim_cut_off(wanted, resume, offline, say)
        if cut_off is not None and jobs.has_finished(cut_off):
            return _deliver_finished(cut_off, uri)
        if cut_off is not None:
            say(f"going on with {cut_off.run_name}, which did not come to its end (--new starts a new run)")
            cut_off.reopen()
    except OSError as error:
        raise UserError(f"cannot write to {lab_dir()}: {error.strerror}; make room there, or set LAB_DIR") from None
    # Asked first, since MLflow takes seconds to load.
    if jobs.stale_attempts(name) and (not offline or server.answers(uri)):
        from trainer.launch import stale

        stale.close_attempts(name, uri, say)
    job = cut_off or _new_job(wanted)
    say(f"{job.run_name} on {devices}; loading PyTorch takes some seconds")
    try:
        workers = Workers(job, arguments, devices, _worker_environment(uri, experiment, devices), max_restarts)
    except OSError as error:
        raise UserError(f"cannot start a job in {job.folder}: {error.strerror}") from None
    workers.forward_signals()
    run = None
    try:
        # Imported while the workers import theirs: MLflow takes seconds to load.
        from trainer.launch.run import JobRun

        run = JobRun(job, uri, provenance.tags(["trainer", *sys.argv[1:]], Path.cwd(), code), devices.gpus, say)
        _watch(workers, run, job)
        ending = workers.ending()
    except BaseException as error:  # whatever happens to launch, no run is left as RUNNING
        workers.kill()
        if run is not None:
            run.close(Ending(error=f"launch: {error}"), LAST_DELIVERY_SECONDS_KILLED, give_up=lambda: False)
        raise
    patience = LAST_DELIVERY_SECONDS if ending.killed_by is None else LAST_DELIVERY_SECONDS_KILLED
    if offline and not server.is_there(uri):
        patience = LAST_DELIVERY_SECONDS_OFFLINE
    delivered = run.close(ending, patience, impatience(workers))
    _summarise(job, run, ending, time.monotonic() - start)
    if not delivered:
        how_bad = "" if offline else "error: "
        say(
            f"{how_bad}the server at {uri} did not take all of it; the rest is kept in {job.folder}, and "
            "`trainer sync` or this job's next start delivers it"
        )
        code = ending.exit_code or (0 if offline else 1)
        _record_exit_code(job, code)
        return code
    return ending.exit_code


def _deliver_finished(job: Job, uri: str) -> int:
    """Have the server know all of a job that has trained already; the exit code of the command."""
    from trainer.launch import stale

    say(
        f"{job.run_name} has finished its training; what the server does not know yet is delivered (--new starts a run)"
    )
    job.release()
    return 0 if stale.close(job, uri, say) else 1


def _record_exit_code(job: Job, code: int) -> None:
    """Of a job whose end is recorded: what its user was told (resume.py)."""
    with contextlib.suppress(OSError):
        if (end := job.end_record()) is not None and end.exit_code != code:
            job.write_end_record(replace(end, exit_code=code))


def impatience(workers: Workers) -> Callable[[], bool]:
    """Whether the last delivery is to be given up, asked while it waits.

    A signal that ended the job has been heeded; one more means it. A first one that comes only now, to a job that has
    ended by itself, shortens the wait and changes nothing else: `docker stop` kills soon after it.
    """
    heeded = workers.signals
    allowed = 0 if workers.killed_by else 1
    hurried = 0.0

    def give_up() -> bool:
        nonlocal hurried
        if workers.signals > heeded and not hurried:
            hurried = time.monotonic()
        return workers.signals > heeded + allowed or (
            hurried > 0 and time.monotonic() - hurried > LAST_DELIVERY_SECONDS_KILLED
        )

    return give_up


def _watch(workers: Workers, run: "JobRun", job: Job) -> None:
    """Wait for the workers' end, and say what happens meanwhile."""
    stopping = told = False
    while workers.running():
        if run.found() and run.url is None:
            say(f"run {job.run_name}: the server at {server.tracking_uri()} is away and gets all of it when it is back")
        if run.url is not None and not told:
            told = True
            say(f"run {job.run_name}: {run.url}")
        if workers.killed_by and not stopping:
            stopping = True
            say(f"{workers.killed_by.name}: ending the job (once more to end it at once)")
        time.sleep(POLL_SECONDS)
    run.found()


def _check(name: str) -> None:
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise UserError(
            f"the job's name {name!r} may have letters, digits, '.', '_' and '-' only; give one with --name"
        )


def _new_job(wanted: Wanted) -> Job:
    """A new attempt at a job; this process's claim on it lasts as long as the process."""
    name = wanted.name
    attempt = f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    job = Job(lab_dir() / "state" / name / attempt)
    try:
        job.folder.mkdir(parents=True)
        job.claim(wait=True)
        job.write_sources(wanted.sources)
    except OSError as error:
        raise UserError(f"cannot write to {job.folder}: {error.strerror}; set LAB_DIR to a folder of yours") from None
    return job


def _worker_environment(uri: str, experiment: str, devices: Devices) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // devices.count)
    return {
        "ACCELERATOR": devices.accelerator,
        **devices.environment(),
        "LAB_DIR": str(lab_dir()),
        "MLFLOW_TRACKING_URI": JOB_SCHEME + uri,
        SERVER_VARIABLE: uri,
        "MLFLOW_REGISTRY_URI": uri,  # the registry has no store of the job's own
        "MLFLOW_EXPERIMENT_NAME": experiment,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": WORKERS_RETRIES,
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # launch prints the URL that the user can open
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        # Threads that spin while they wait starve the others where the cores are shared: 11-21 s an epoch of digits
        # became 1-3 s on a busy machine of 2 cores.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        # On the lab's own volume, where weights outlive the container and its root file system is read-only.
        "TORCH_HOME": os.environ.get("TORCH_HOME", str(lab_dir() / "data" / "torch")),
    }


def _summarise(job: Job, run: "JobRun", ending: Ending, seconds: float) -> None:
    if ending.error is not None:
        say(f"error: {ending.error}")
        if not ending.user_error:
            say(f"tracebacks and logs of the ranks: {job.failures} {job.logs}")
    if job.run_record() is None:
        say(f"{run.status_name} before there was a run")
        return
    latest = run.latest_metrics()
    facts = [run.status_name]
    if "best_epoch" in latest:
        facts.append(f"best epoch {int(latest['best_epoch'])}")
    facts += [f"{key} {value:.4g}" for key, value in sorted(latest.items()) if key.startswith("test_")]
    facts.append(f"{int(seconds) // 60} min {int(seconds) % 60} s")
    say(", ".join(facts))
    say(run.url or f"the server at {server.tracking_uri()} has not made the run yet")
    if refused := [str(place) for place in (job.refused, job.refused_files) if place.exists()]:
        say(f"not all of it: what the server has refused is kept in {' and '.join(refused)}")
    if ending.exit_code not in (0, USER_ERROR) and job.arguments()[0] == "fit" and any(job.checkpoints.glob("*.ckpt")):
        say("the same command goes on with it; --new starts anew")
