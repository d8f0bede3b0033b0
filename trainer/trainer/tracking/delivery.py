"""Delivers a job's spool to the MLflow server, in the background, in order, until the job has ended.

Delivering a batch twice does no harm: the server keeps one of equal (key, step, timestamp, value). So the place in
the spool moves on only after the server has taken a batch, and a crash repeats the last batch at most.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from functools import partial

from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    INVALID_PARAMETER_VALUE,
    INVALID_STATE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.time import get_current_time_millis
from mlflow.utils.validation import MAX_ENTITIES_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH

from trainer.tracking.job import Job
from trainer.tracking.spool import Record, SpoolReader

INTERVAL_SECONDS = 1.0
# Answers that no later try can change; anything else (no connection, 5xx, 429) is tried again.
FINAL_ANSWERS = {
    ErrorCode.Name(code)
    for code in (
        BAD_REQUEST,
        INVALID_PARAMETER_VALUE,
        INVALID_STATE,
        RESOURCE_ALREADY_EXISTS,
        RESOURCE_DOES_NOT_EXIST,
    )
}


class Delivery:
    """Posts the spool about once a second from a thread of its own.

    Args:
        job: Whose spool.
        server_uri: http(s) URL of the MLflow server.
        say: Called with one line for the user when the server goes away, comes back or refuses something.
    """

    def __init__(self, job: Job, server_uri: str, say: Callable[[str], None]) -> None:
        self._job = job
        self._say = say
        # This loop is the retry; MLflow's own would hold one request for minutes.
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self._store = RestStore(partial(get_default_host_creds, server_uri))
        self._reader = SpoolReader(job.spool)
        self._away_since: float | None = None
        self._aside: list[tuple[bytes, str]] = []
        self._last_os_error = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="delivery", daemon=True)
        self.latest: dict[str, float] = {}
        """The newest value of each metric that passed, for the summary."""

    def start(self) -> None:
        self._thread.start()

    def _loop(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self._try(self._deliver_pending)

    def close(self, status: int, patience: float, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Deliver what is left, then set the run's status.

        Args:
            status: The truth about the job, one of `mlflow.entities.RunStatus`.
            patience: Seconds to go on trying while the server does not answer.
            give_up: Asked between tries; True ends them.

        Returns:
            Whether everything, the status included, has reached the server.
        """
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        deadline = time.monotonic() + patience
        waiting = False
        while not (self._try(self._deliver_pending) and self._set_status(status)):
            if not waiting:
                waiting = True
                self._say(f"the job has ended; waiting up to {patience:.0f} s for the tracking server (Ctrl-C ends it)")
            next_try = time.monotonic() + INTERVAL_SECONDS
            while time.monotonic() < next_try:
                if give_up() or time.monotonic() > deadline:
                    return False
                time.sleep(0.1)
        return True

    def _try(self, deliver: Callable[[], bool]) -> bool:
        try:
            return deliver()
        except OSError as error:  # the state folder's disk, full say; the next try may find room
            if str(error) != self._last_os_error:
                self._last_os_error = str(error)
                self._say(f"the spool cannot be delivered: {error}")
            return False

    def _deliver_pending(self) -> bool:
        """Deliver every complete record; False if the server did not take them all."""
        while True:
            lines, offset = self._reader.read(most=MAX_ENTITIES_PER_BATCH)
            if not lines:
                return True
            self._aside = [(raw, "unreadable") for record, raw in lines if record is None]
            records = [record for record, _ in lines if record is not None]
            for batch in _batches(records):
                if not self._deliver(batch):
                    return False
            # Only now, with the place that moves on: a later try would set the same records aside once more.
            for raw, reason in self._aside:
                self._set_aside(raw, reason)
            self._reader.delivered(offset)

    def _deliver(self, batch: list[Record]) -> bool:
        """Post one batch; False if the server is away."""
        try:
            self._post(_merged(batch))
        except MlflowException as error:
            if error.error_code not in FINAL_ANSWERS:
                return self._away(error)
            if len(batch) > 1:  # find the one that is refused; the others must not suffer for it
                return all(self._deliver([record]) for record in batch)
            if parts := _parts(batch[0]):
                return all(self._deliver([part]) for part in parts)
            self._aside.append((json.dumps(batch[0]).encode() + b"\n", error.message))
        self._back()
        for record in batch:
            self.latest.update({metric["key"]: metric["value"] for metric in record.get("metrics", [])})
        return True

    def _post(self, record: Record) -> None:
        self._store.log_batch(
            record["run_id"],
            [Metric(**metric) for metric in record.get("metrics", [])],
            [Param(**param) for param in record.get("params", [])],
            [RunTag(**tag) for tag in record.get("tags", [])],
        )

    def _set_status(self, status: RunStatus) -> bool:
        record = self._job.run_record()
        if record is None:
            return True
        try:
            self._store.update_run_info(record.run_id, status, get_current_time_millis(), None)
        except MlflowException as error:
            if error.error_code not in FINAL_ANSWERS:
                return self._away(error)
            self._say(f"the server refused status {RunStatus.to_string(status)}: {error.message}")
        return True

    def _set_aside(self, raw: bytes, reason: str) -> None:
        refused = self._job.folder / "refused.jsonl"
        with open(refused, "ab") as file:
            file.write(raw)
        self._say(f"one record is set aside in {refused}: {' '.join(reason.split())[:200]}")

    def _away(self, error: MlflowException) -> bool:
        if self._away_since is None:
            self._away_since = time.monotonic()
            reason = str(error.message).rsplit(":", 1)[-1].strip(" ')")
            self._say(
                f"the tracking server does not answer ({reason[:120]}); training goes on, its records wait on disk"
            )
        return False

    def _back(self) -> None:
        if self._away_since is not None:
            self._say(f"the tracking server is back after {time.monotonic() - self._away_since:.0f} s")
            self._away_since = None


def _batches(records: list[Record]) -> list[list[Record]]:
    """Group records in order, each group of one run and within what one `log_batch` may carry."""
    batches: list[list[Record]] = []
    metrics = others = 0
    for record in records:
        more_metrics, more_others = len(record.get("metrics", [])), _others(record)
        if (
            not batches
            or batches[-1][0]["run_id"] != record["run_id"]
            or metrics + more_metrics + others + more_others > MAX_ENTITIES_PER_BATCH
            or others + more_others > MAX_PARAMS_TAGS_PER_BATCH
        ):
            batches.append([])
            metrics = others = 0
        batches[-1].append(record)
        metrics, others = metrics + more_metrics, others + more_others
    return batches


def _others(record: Record) -> int:
    return len(record.get("params", [])) + len(record.get("tags", []))


def _parts(record: Record) -> list[Record]:
    """One record for each value in it; none where it holds only one."""
    parts = [
        {"run_id": record["run_id"], kind: [value]}
        for kind in ("metrics", "params", "tags")
        for value in record.get(kind, [])
    ]
    return parts if len(parts) > 1 else []


def _merged(batch: list[Record]) -> Record:
    """The batch as one record; the server refuses the same param or tag twice in one request."""
    params = {(param["key"], param["value"]): param for record in batch for param in record.get("params", [])}
    tags = {tag["key"]: tag for record in batch for tag in record.get("tags", [])}
    return {
        "run_id": batch[0]["run_id"],
        "metrics": [metric for record in batch for metric in record.get("metrics", [])],
        "params": list(params.values()),
        "tags": list(tags.values()),
    }
