"""What the job's spool says that an earlier start of the same job has written already.

A job that goes on from its last checkpoint repeats what it had written since; a run must have each point once.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.tracking import spool
from trainer.tracking.job import Job
from trainer.tracking.promises import Promises

if TYPE_CHECKING:  # MLflow loads the job's store while it is being imported itself
    from mlflow.entities import Metric

DRIFT = "drift."
"""Before a param's or a tag's name: the tag that says how it changed from one start of the job to the next."""

Series = tuple[str, str, str | None]
"""A run's id, a metric's name, and the logged model that it belongs to, if any."""


class History:
    """A job's spool as it stood when this was made.

    Args:
        job: Whose; it need not have written anything.
    """

    def __init__(self, job: Job) -> None:
        self._params: dict[tuple[str, str], str] = {}
        self._tags: dict[tuple[str, str], str] = {}
        self._run_ids: set[str] = set()
        self._steps: dict[Series, set[int]] = {}
        self._last: dict[tuple[str, str], float] = {}
        self._several: set[Series] = set()
        self._model_steps: dict[str, int] = {}
        self._ready: set[str] = set()
        self._promises = Promises(job)
        for record in spool.records(job.spool):
            run_id = record["run_id"]
            self._run_ids.add(run_id)
            for metric in record.get("metrics", []):
                series = (run_id, metric["key"], metric.get("model_id"))
                steps = self._steps.setdefault(series, set())
                if metric["step"] in steps:
                    self._several.add(series)
                steps.add(metric["step"])
                self._last[run_id, metric["key"]] = metric["value"]
            for param in record.get("params", []):
                self._params.setdefault((run_id, param["key"]), param["value"])
            for tag in record.get("tags", []):
                self._tags[run_id, tag["key"]] = tag["value"]
            if record.get("call") == "LogOutputs":
                for model in json.loads(record["body"]).get("models", []):
                    self._model_steps[model["model_id"]] = int(model.get("step", 0))
            if record.get("status") == "READY":
                self._ready.add(record["finalize"])

    def _names_of(self, run_id: str) -> list[str]:
        """All ids that a run has had in the spool: the promised one, and the one that the server gave in its place."""
        real = self._promises.in_text(run_id)
        return [known for known in self._run_ids if self._promises.in_text(known) == real]

    def takes_back(self, run_id: str, metric: Metric) -> bool:
        """Whether this point repeats one; each known point answers for one repeat.

        Not so of a metric that has several points at one step on purpose, such as one that is logged without a step.
        """
        for name in self._names_of(run_id):
            series = (name, metric.key, metric.model_id)
            steps = self._steps.get(series, set())
            if series not in self._several and metric.step in steps:
                steps.remove(metric.step)
                return True
        return False

    def has_model(self, step: int) -> bool:
        """Whether a model of this step has been logged, with all its files."""
        return any(self._model_steps.get(model_id) == step for model_id in self._ready)

    def next_step(self, run_id: str, prefix: str) -> int:
        """The step after the last one of all metrics whose names begin with `prefix`; 0 where there are none."""
        names = self._names_of(run_id)
        last = [
            max(steps)
            for (run, key, _), steps in self._steps.items()
            if run in names and key.startswith(prefix) and steps
        ]
        return max(last, default=-1) + 1

    def last(self, run_id: str, key: str) -> float | None:
        """The value of a metric that was written last."""
        return next((self._last[run, key] for run in self._names_of(run_id) if (run, key) in self._last), None)

    def param(self, run_id: str, key: str) -> str | None:
        """What a param was set to first."""
        return next((self._params[run, key] for run in self._names_of(run_id) if (run, key) in self._params), None)

    def tag(self, run_id: str, key: str) -> str | None:
        """What a tag was set to last."""
        return next((self._tags[run, key] for run in self._names_of(run_id) if (run, key) in self._tags), None)

    def drift(self, run_id: str, key: str, value: str) -> str | None:
        """How a param or a tag has changed: "old -> new", or longer after several changes; None where it has not.

        Args:
            run_id: The job's run.
            key: Name of the param or the tag.
            value: What it is now.
        """
        before = self.param(run_id, key)
        before = self.tag(run_id, key) if before is None else before
        if before is None:
            return None
        chain = self.tag(run_id, DRIFT + key) or before
        return None if chain.split(ARROW)[-1] == value else chain + ARROW + value


ARROW = " -> "


@cache
def of_earlier_starts(folder: Path) -> History:
    """What the starts of a job before this process have written; the same for all its stores."""
    return History(Job(folder))
