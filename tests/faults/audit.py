"""The same audit for every case: what the server holds of a job, against the truth that the job wrote beside it."""

import csv
import hashlib
import math
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run

from trainer.tracking import spool
from trainer.tracking.job import Job

PATIENCE = 2
"""Of the early stopping in project/paced.yaml."""
PAYLOAD_BYTES = 8 * 2**20
"""Of the file that project/truth.py logs."""
NOT_OF_THE_TRAINING = ("system/", "outage_seconds", "artifact_outage_seconds")
"""Metrics that launch writes by itself."""

LOADING = threading.Lock()
"""torch.export.load (2.14) is not for two threads at once."""

Points = dict[tuple[str, int], list[float]]
"""Values by metric and step."""


@dataclass
class Audit:
    """What the audit of one job has found."""

    expected: int = 0
    """Points that the run must hold."""
    got: int = 0
    """Of these, held with the true value."""
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    """Points of another value than the truth's, or of none."""
    artifacts: int = 0
    """Files that are whole."""
    status: str = ""
    problems: list[str] = field(default_factory=list)

    def demand(self, condition: bool, problem: str) -> bool:
        if not condition:
            self.problems.append(problem)
        return condition


def audit(uri: str, experiment: str, state: Path, truth: Path) -> Audit:
    """Compare the one run of a job that has ended by itself with the truth.

    Args:
        uri: URL of the MLflow server.
        experiment: Of this job alone.
        state: The lab's `state/`, of this job alone.
        truth: The folder that project/truth.py wrote.
    """
    found, client = Audit(), MlflowClient(uri)
    experiment_record = client.get_experiment_by_name(experiment)
    runs = [] if experiment_record is None else client.search_runs([experiment_record.experiment_id])
    found.status = ", ".join(run.info.status for run in runs) or "no run"
    true_points = read_truth(truth, found)
    if not found.demand(len(runs) == 1, f"{len(runs)} runs instead of one"):
        found.expected = found.lost = len(true_points)
        return found
    (run,) = runs
    jobs = [Job(folder) for folder in state.glob("*/*/") if (folder / "run.json").exists()]
    if found.demand(len(jobs) == 1, f"{len(jobs)} folders with a run instead of one"):
        _audit_folder(found, jobs[0], run)
    _audit_status(found, run)
    compare(found, true_points, points_of(client, run))
    _audit_system_metrics(found, client, run)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(client.download_artifacts(run.info.run_id, "", folder))
        _audit_files(found, files, truth)
        if jobs:
            _audit_checkpoints(found, files / "checkpoints", jobs[0].checkpoints, true_points)
            _audit_model(found, client, run, jobs[0].checkpoints / "best.ckpt")
    return found


def read_truth(folder: Path, found: Audit) -> dict[tuple[str, int], float]:
    """The points that the run must hold; a replayed epoch must have repeated its values bit for bit."""
    points: dict[tuple[str, int], float] = {}
    for _, key, step, text in _rows(folder / "truth.csv"):
        value = points.setdefault((key, int(step)), float(text))
        found.demand(value == float(text), f"{key} at step {step} was {value}, and {text} when it was replayed")
    losses = [points["val_loss", step] for step in range(sum(key == "val_loss" for key, _ in points))]
    found.demand(len(losses) > PATIENCE, "no training came to its end")
    if losses:
        best = losses.index(min(losses))
        found.demand(len(losses) == best + PATIENCE + 1, f"best epoch {best}, but {len(losses)} epochs were trained")
        points["best_epoch", best], points["best_val_loss", best] = float(best), losses[best]
        points["stopped_epoch", len(losses) - 1] = float(len(losses) - 1)
    return points


def points_of(client: MlflowClient, run: Run) -> Points:
    """Every point of the run on the server that is of the training."""
    points: Points = {}
    for key in run.data.metrics:
        if not key.startswith(NOT_OF_THE_TRAINING):
            for point in client.get_metric_history(run.info.run_id, key):
                points.setdefault((key, point.step), []).append(point.value)
    return points


def compare(found: Audit, true_points: dict[tuple[str, int], float], points: Points) -> None:
    """Count what is held, lost, twice there and wrong."""
    found.expected = len(true_points)
    found.got = sum(any(_equal(value, held) for held in points.get(point, [])) for point, value in true_points.items())
    lost = [point for point in true_points if point not in points]
    twice = {point: len(values) - 1 for point, values in points.items() if len(values) > 1}
    wrong = [
        point
        for point, values in points.items()
        if point not in true_points or not all(_equal(value, true_points[point]) for value in values)
    ]
    found.lost, found.duplicated, found.wrong = len(lost), sum(twice.values()), len(wrong)
    for what, which in (("lost", lost), ("there twice", list(twice)), ("wrong", wrong)):
        found.demand(not which, f"{len(which)} points {what}: {which[:4]}")


def outages(uri: str, experiment: str, metric: str) -> list[float]:
    """The lengths of the outages, in seconds, of which the one run in an experiment tells."""
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return [point.value for point in client.get_metric_history(run.info.run_id, metric)]


def _equal(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _audit_status(found: Audit, run: Run) -> None:
    found.demand(run.info.status == "FINISHED", f"status {run.info.status} of a job that ended by itself")
    found.demand((run.info.end_time or 0) > run.info.start_time, "no end time")
    for tag in ("failure", "killed_by"):
        found.demand(tag not in run.data.tags, f"tag {tag} of an end that was none: {run.data.tags.get(tag)}")
    found.demand(run.data.params.get("model.class_path") == "paced.Paced", "the configuration's params are not there")


def _audit_system_metrics(found: Audit, client: MlflowClient, run: Run) -> None:
    for key in run.data.metrics:
        if key.startswith("system/cpu"):
            steps = Counter(point.step for point in client.get_metric_history(run.info.run_id, key))
            found.demand(sorted(steps) == list(range(len(steps))), f"{key} has gaps: {sorted(steps)}")
            found.demand(set(steps.values()) == {1}, f"{key} has a step twice")


def _audit_folder(found: Audit, job: Job, run: Run) -> None:
    end = job.end_record()
    found.demand(end is not None and (end.status, end.delivered) == ("FINISHED", True), f"the folder says {end}")
    found.demand(job.run_record().run_id == run.info.run_id, "the folder names another run")
    left = list(job.outbox.rglob("*")) if job.outbox.exists() else []
    found.demand(not left, f"left in the outbox: {left[:3]}")
    for refused in (job.refused, job.refused_files):
        found.demand(not refused.exists(), f"there is {refused.name}")
    for place, of_files in ((".offset", False), (".uploads", True)):
        lines = spool.SpoolReader(job.spool, place).read(most=10**6)
        rest = [line for line in lines if line.record is None or spool.is_of_files(line.record) == of_files]
        found.demand(not rest, f"{len(rest)} records of the spool are not delivered ({place})")


def _audit_files(found: Audit, files: Path, truth: Path) -> None:
    for path, sha256 in {(path, sha256) for path, sha256 in _rows(truth / "artifacts.csv")}:
        held = hashlib.sha256((files / path).read_bytes()).hexdigest() if (files / path).exists() else "not there"
        found.artifacts += found.demand(held == sha256, f"{path}: {held}")
    for path in files.glob("config*.yaml"):
        config = yaml.safe_load(path.read_text())
        found.artifacts += found.demand(config["model"]["class_path"] == "paced.Paced", f"{path.name} is not whole")
    for name in ("config.yaml", "model_summary.txt"):
        found.artifacts += found.demand((files / name).exists(), f"no {name}")


def _audit_checkpoints(found: Audit, uploaded: Path, local: Path, true_points: dict[tuple[str, int], float]) -> None:
    last = max(step for key, step in true_points if key == "val_loss")
    epochs = {"last.ckpt": last, "best.ckpt": next(step for key, step in true_points if key == "best_epoch")}
    for file in local.iterdir():
        # previous.ckpt: the last one but one, should the disk have damaged the last
        found.demand(file.name in {*epochs, "previous.ckpt"}, f"a file that is no checkpoint: {file.name}")
        found.demand(_checkpoint(file) is not None, f"checkpoints/{file.name} cannot be loaded")
    for name, epoch in epochs.items():
        if not found.demand((uploaded / name).exists(), f"the run has no checkpoints/{name}"):
            continue
        checkpoint = _checkpoint(uploaded / name)
        held = None if checkpoint is None else checkpoint["epoch"]
        whole = found.demand(held == epoch, f"the run's {name} is of epoch {held} instead of {epoch}")
        same = (local / name).exists() and (uploaded / name).read_bytes() == (local / name).read_bytes()
        found.artifacts += whole and found.demand(same, f"the run's {name} is another than the job's")


def _checkpoint(file: Path) -> dict[str, Any] | None:
    try:
        return torch.load(file, map_location="cpu", weights_only=False)
    except Exception:  # whatever a half-written file makes torch raise
        return None


def _audit_model(found: Audit, client: MlflowClient, run: Run, best: Path) -> None:
    models = client.search_logged_models([run.info.experiment_id])
    ready = [model for model in models if model.status == LoggedModelStatus.READY]
    found.demand(not [m for m in models if m.status == LoggedModelStatus.PENDING], "a logged model is PENDING")
    if not found.demand(len(ready) == 1, f"{len(ready)} logged models instead of one"):
        return
    mlflow.set_tracking_uri(client.tracking_uri)
    try:
        with LOADING:
            model = mlflow.pytorch.load_model(f"models:/{ready[0].model_id}")
    except Exception as error:  # whatever a file that is missing or cut makes MLflow raise
        found.problems.append(f"the logged model cannot be loaded: {error}")
        return
    checkpoint = _checkpoint(best)
    if checkpoint is None:  # said already
        return
    weights = checkpoint["state_dict"]
    points = torch.rand(8, 2)
    hidden = torch.relu(points @ weights["layers.0.weight"].T + weights["layers.0.bias"])
    wanted = hidden @ weights["layers.3.weight"].T + weights["layers.3.bias"]
    with torch.no_grad():
        found.artifacts += found.demand(torch.allclose(model(points), wanted, atol=1e-5), "the model is not the best")


def _rows(file: Path) -> list[list[str]]:
    """The whole lines of a CSV file; none where it is not there."""
    if not file.exists():
        return []
    text = file.read_text()
    return list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
