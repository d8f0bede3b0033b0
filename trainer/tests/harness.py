"""The real `trainer` command and what it left on a real MLflow server, as the tests see them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunTag

from trainer.tracking import spool
from trainer.tracking.batches import record_of
from trainer.tracking.job import Job, RunRecord

PROJECT = Path(__file__).parents[1]
DIGITS = ("fit", "--config", "configs/digits.yaml")
TRAINER = str(Path(sys.executable).with_name("trainer"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.1)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie is dead and only waits for its new parent to notice."""

    def runs(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [process for process in processes if runs(process)]


@dataclass(frozen=True)
class Lab:
    """One lab folder and the MLflow server that its jobs report to."""

    folder: Path
    uri: str

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "LAB_DIR": str(self.folder), "MLFLOW_TRACKING_URI": self.uri, "ACCELERATOR": "cpu"}

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start `trainer …`, its output in one pipe."""
        return subprocess.Popen(
            [TRAINER, *words],
            cwd=PROJECT,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `trainer …` to its end."""
        process = self.start(*words, **environment)
        output, _ = process.communicate(timeout=300)
        return subprocess.CompletedProcess([TRAINER, *words], process.returncode, output)

    def runs(self, experiment: str) -> list[Run]:
        found = self.client.get_experiment_by_name(experiment)
        return [] if found is None else list(self.client.search_runs([found.experiment_id]))

    def only_run(self, experiment: str) -> Run:
        (run,) = self.runs(experiment)
        return run

    def points(self, run: Run, key: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in self.client.get_metric_history(run.info.run_id, key)]


def job_with_run(lab: Lab, folder: Path, experiment: str = "delivery") -> Job:
    """A job in `folder` that has a run on the lab's server, without a launch or workers."""
    found = lab.client.get_experiment_by_name(experiment)
    info = lab.client.create_run(found.experiment_id if found else lab.client.create_experiment(experiment)).info
    job = Job(folder)
    job.write_run_record(RunRecord.of(info, experiment))
    return job


def left_job(lab: Lab, name: str, number: int = 0) -> Job:
    """A job as its launch left it when the power went: a run on the server, and a metric that is not delivered."""
    client = lab.client
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    info = client.create_run(experiment, run_name=f"{name}-20261101-00000{number}-abcd").info
    job = Job(lab.folder / "state" / name / info.run_name)
    job.folder.mkdir(parents=True)
    job.write_arguments(["fit"])
    job.write_run_record(
        RunRecord(
            run_id=info.run_id,
            experiment_id=experiment,
            experiment=name,
            name=info.run_name,
            artifact_uri=info.artifact_uri,
            start_time=info.start_time,
            user_id=info.user_id,
            server=lab.uri,
        )
    )
    now = info.start_time + 100
    spool.append(job.spool, record_of(info.run_id, [Metric("loss", 0.5, now, 0)], [], [RunTag("late", "yes")]))
    return job
