"""What the job's spool says that an earlier start of the same job has written already.

A job that goes on from its last checkpoint repeats what it had written since; a run must have each point once.
"""

from __future__ import annotations

import json
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
        self.params: dict[tuple[str, str], str] = {}
        """By run and name."""
        self.tags: dict[tuple[str, str], str] = {}
        """By run and name; the newest value."""
        self._steps: dict[Series, set[int]] = {}
        self._last: dict[tuple[str, str], float] = {}
        self._several: set[Series] = set()
        self._model_steps: dict[str, int] = {}
        self._ready: set[str] = set()
        self._promises = Promises(job)
        for line in spool.records(job.spool):
            record = self._promises.in_record(line)
            run_id = record["run_id"]
            for metric in record.get("metrics", []):
                series = (run_id, metric["key"], metric.get("model_id"))
                steps = self._steps.setdefault(series, set())
                if metric["step"] in steps:
                    self._several.add(series)
                steps.add(metric["step"])
                self._last[run_id, metric["key"]] = metric["value"]
            for param in record.get("params", []):
                self.params.setdefault((run_id, param["key"]), param["value"])
            for tag in record.get("tags", []):
                self.tags[run_id, tag["key"]] = tag["value"]
            if record.get("call") == "LogOutputs":
                for model in json.loads(record["body"]).get("models", []):
                    self._model_steps[model["model_id"]] = int(model.get("step", 0))
            if record.get("status") == "READY":
                self._ready.add(record["finalize"])

    def has(self, run_id: str, metric: Metric) -> bool:
        """Whether this point would repeat one; not so of a metric that has several points at one step on purpose."""
        series = (self._promises.in_text(run_id), metric.key, metric.model_id)
        return series not in self._several and metric.step in self._steps.get(series, ())

    def has_model(self, step: int) -> bool:
        """Whether a model of this step has been logged, with all its files."""
        return any(self._model_steps.get(model_id) == step for model_id in self._ready)

    def next_step(self, run_id: str, prefix: str) -> int:
        """The step after the last one of all metrics whose names begin with `prefix`; 0 where there are none."""
        run_id = self._promises.in_text(run_id)
        last = [max(steps) for (run, key, _), steps in self._steps.items() if run == run_id and key.startswith(prefix)]
        return max(last, default=-1) + 1

    def last(self, run_id: str, key: str) -> float | None:
        """The value of a metric that was written last."""
        return self._last.get((self._promises.in_text(run_id), key))

    def drift(self, run_id: str, key: str, value: str) -> str | None:
        """How a param or a tag has changed: "old -> new", or longer after several changes; None where it has not.

        Args:
            run_id: The job's run.
            key: Name of the param or the tag.
            value: What it is now.
        """
        run_id = self._promises.in_text(run_id)
        before = self.params.get((run_id, key), self.tags.get((run_id, key)))
        if before is None:
            return None
        chain = self.tags.get((run_id, DRIFT + key), before)
        return None if chain.split(ARROW)[-1] == value else chain + ARROW + value


ARROW = " -> "
