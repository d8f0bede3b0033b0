"""Delivers a job's spool to the MLflow server, in the background, in order, until the job has ended.

Delivering a batch twice does no harm: the server keeps one of equal (key, step, timestamp, value). So the place in
the spool moves on only after the server has taken a batch, and a crash repeats the last batch at most.
Files have a queue of their own (uploads.py).
"""

import json
import os
import threading
import time
from collections.abc import Callable
from functools import partial

from mlflow.entities import LifecycleStage, LoggedModelStatus, Metric, Param, Run, RunStatus, RunTag, ViewType
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

from trainer.tracking import spool
from trainer.tracking.job import Job, RunRecord
from trainer.tracking.schemes import JOB_TAG
from trainer.tracking.spool import Record, SpoolReader
from trainer.tracking.uploads import Uploads

INTERVAL_SECONDS = 1.0
UPLOADS_SECONDS = 10.0
"""How long the status waits for the last files, so that whoever sees it finds them; it does not depend on them."""
MODEL_TRIES = 3
END_TAGS = {"failure", "killed_by"}
"""What a run's tags say about its end."""
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
        reopened: Whether the job goes on after its run may have been closed: it is then set to RUNNING again first.
    """

    def __init__(self, job: Job, server_uri: str, say: Callable[[str], None], reopened: bool = False) -> None:
        self._job = job
        self._server_uri = server_uri
        self._say = say
        # This loop is the retry; MLflow's own would hold one request for minutes.
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        self._store = RestStore(partial(get_default_host_creds, server_uri))
        self._reader = SpoolReader(job.spool)
        self._uploads = Uploads(job, server_uri, say)
        self._away_since: float | None = None
        self._aside: list[tuple[bytes, str]] = []
        self._last_os_error = ""
        self._run_is_gone = False
        self._to_reopen = reopened
        self._model_tries = 0
        self._stop = threading.Event()
        self._abandoned = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="delivery", daemon=True)
        self.latest: dict[str, float] = {}
        """The newest value of each metric that passed, for the summary."""

    def start(self) -> None:
        self._thread.start()
        self._uploads.start()

    def run(self) -> Run | None:
        """The job's run as the server has it now; None where it has no such run.

        Raises:
            MlflowException: The server is away.
        """
        record = self._job.run_record()
        assert record is not None, "asked for a job that has a run"
        try:
            return self._store.get_run(record.run_id)
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return None
            raise

    def find_run(self, experiment_id: str) -> bool:
        """Find the run that the server made for a job whose asker died before the answer, and record it.

        Raises:
            MlflowException: The server is away.
        """
        found = self._store.search_runs(
            [experiment_id], f"tags.{JOB_TAG} = '{self._job.run_name}'", ViewType.ACTIVE_ONLY, max_results=1
        )
        for run in found:
            experiment = self._store.get_experiment(run.info.experiment_id).name
            self._job.write_run_record(RunRecord.of(run.info, experiment, self._server_uri))
        return bool(found)

    def _loop(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self._try(self._deliver_pending)

    def close(
        self,
        status: int,
        patience: float,
        give_up: Callable[[], bool] = lambda: False,
        end_time: int | None = None,
    ) -> bool:
        """Deliver what is left, then set the run's status.

        Args:
            status: The truth about the job, one of `mlflow.entities.RunStatus`.
            patience: Seconds to go on trying while the server does not answer.
            give_up: Asked between tries; True ends them.
            end_time: When the job ended, in milliseconds since the epoch; by default now.

        Returns:
            Whether everything, the status included, has reached the server.
        """
        # In a thread, since a request may hang for longer than anyone here has patience.
        closing = threading.Thread(target=self._close, args=(status, end_time or get_current_time_millis()))
        closing.daemon = True
        closing.start()
        began, said = time.monotonic(), False
        while closing.is_alive():
            closing.join(0.1)
            waited = time.monotonic() - began
            if give_up() or waited > patience:
                self._abandoned.set()
                self._uploads.abandon()
                break
            if waited > 3 and not said:
                said = True
                self._say(f"the job has ended; the server has up to {patience:.0f} s to take the rest (Ctrl-C ends it)")
        return self._closed

    def _close(self, status: int, end_time: int) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._uploads.finish()
        began, told = time.monotonic(), False
        while not self._abandoned.is_set():
            delivered = self._try(self._deliver_pending)
            uploaded = self._uploads.done(within=INTERVAL_SECONDS)
            if delivered and not told and (uploaded or time.monotonic() - began > UPLOADS_SECONDS):
                told = self._finish_models() and self._set_status(status, end_time)
            if delivered and uploaded and told:
                self._closed = True
                return
            self._abandoned.wait(INTERVAL_SECONDS)

    def _try(self, deliver: Callable[[], bool]) -> bool:
        try:
            return deliver()
        except OSError as error:  # the state folder's disk, full say; the next try may find room
            if str(error) != self._last_os_error:
                self._last_os_error = str(error)
                self._say(f"the spool cannot be delivered: {error}")
            return False

    def _deliver_pending(self) -> bool:
        """Deliver every complete record of values; False if the server did not take them all."""
        if self._to_reopen and not self._reopen():
            return False
        while lines := self._reader.read(most=MAX_ENTITIES_PER_BATCH):
            self._aside = [(line.raw, "unreadable") for line in lines if line.record is None and line.raw.strip()]
            records = [line.record for line in lines if line.record is not None and "artifact" not in line.record]
            for batch in _batches(records):
                if not self._deliver(batch):
                    return False
            # Only now, with the place that moves on: a later try would set the same records aside once more.
            self._set_aside()
            self._reader.delivered(lines[-1].end)
        return True

    def _reopen(self) -> bool:
        """Take back what the run says about an end that was none; False if the server is away."""
        record = self._job.run_record()
        assert record is not None, "a job that goes on has a run"
        try:
            run = self.run()
            if run is not None:
                self._store.update_run_info(record.run_id, RunStatus.RUNNING, None, None)
                for key in END_TAGS & run.data.tags.keys():
                    self._store.delete_tag(record.run_id, key)
        except MlflowException as error:
            if error.error_code not in FINAL_ANSWERS:
                return self._away(str(error.message))
        self._to_reopen = False
        return True

    def _deliver(self, batch: list[Record]) -> bool:
        """Post one batch; False if the server is away."""
        try:
            values = _values(_merged(batch))
        except Exception as error:  # whatever MLflow's entities say to what is no value of theirs
            return self._refused(batch, str(error))
        try:
            self._store.log_batch(batch[0]["run_id"], *values)
        except MlflowException as error:
            if error.error_code not in FINAL_ANSWERS:
                return self._away(str(error.message))
            try:
                self._note_whether_the_run_is_gone()
            except MlflowException as error:
                return self._away(str(error.message))
            return self._refused(batch, str(error.message))
        except ValueError as error:  # no answer of an MLflow server's: a proxy's page, say
            return self._away(str(error))
        self._run_is_gone = False
        self._back()
        for record in batch:
            self.latest.update({metric["key"]: metric["value"] for metric in record.get("metrics", [])})
        return True

    def _refused(self, batch: list[Record], reason: str) -> bool:
        """Set aside what is refused, and deliver the rest of the batch; False if the server is away."""
        if self._run_is_gone:  # all of it is, and that has been said
            self._aside += [(_line(record), "") for record in batch]
            return True
        if len(batch) > 1:  # find the one that is refused; the others must not suffer for it
            return all(self._deliver([record]) for record in batch)
        if parts := _parts(batch[0]):
            return all(self._deliver([part]) for part in parts)
        self._aside.append((_line(batch[0]), reason))
        self._back()
        return True

    def _note_whether_the_run_is_gone(self) -> None:
        """See to it that a run which was deleted in mid-training is said once, and not with every record.

        Raises:
            MlflowException: The server is away.
        """
        run = self.run()
        gone = run is None or run.info.lifecycle_stage != LifecycleStage.ACTIVE
        if gone and not self._run_is_gone:
            self._say(f"the run was deleted on the server; what the job still writes is kept in {self._job.refused}")
        self._run_is_gone = gone

    def _finish_models(self) -> bool:
        """Mark models that nobody has finished as failed: a killed job leaves them PENDING.

        False to try again. A server that does not know logged models must not withhold the status for ever.
        """
        record = self._job.run_record()
        if record is None:
            return True
        try:
            token = None
            while True:
                page = self._store.search_logged_models(
                    [record.experiment_id], f"source_run_id = '{record.run_id}'", page_token=token
                )
                for model in page:
                    if model.status == LoggedModelStatus.PENDING:
                        self._store.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
                if not (token := page.token):
                    return True
        except MlflowException as error:
            self._model_tries += 1
            return error.error_code in FINAL_ANSWERS or self._model_tries >= MODEL_TRIES

    def _set_status(self, status: int, end_time: int) -> bool:
        record = self._job.run_record()
        if record is None:
            return True
        try:
            self._store.update_run_info(record.run_id, status, end_time, None)
        except MlflowException as error:
            if error.error_code not in FINAL_ANSWERS:
                return self._away(str(error.message))
            if not self._run_is_gone:
                self._say(f"the server refused status {RunStatus.to_string(status)}: {error.message}")
        return True

    def _set_aside(self) -> None:
        if self._aside:
            spool.set_aside(self._job.refused, [raw for raw, _ in self._aside])
        for _, reason in self._aside:
            if reason:
                self._say(f"one record is set aside in {self._job.refused}: {' '.join(reason.split())[:200]}")

    def _away(self, reason: str) -> bool:
        if self._away_since is None:
            self._away_since = time.monotonic()
            reason = reason.rsplit(":", 1)[-1].strip(" ')")
            self._say(
                f"the tracking server does not answer ({reason[:120]}); training goes on, its records wait on disk"
            )
        return False

    def _back(self) -> None:
        if self._away_since is not None:
            self._say(f"the tracking server is back after {time.monotonic() - self._away_since:.0f} s")
            self._away_since = None


def _values(record: Record) -> tuple[list[Metric], list[Param], list[RunTag]]:
    """A record's values as MLflow's entities, tried as what goes over the wire; raises whatever MLflow raises."""
    values = (
        [Metric(**metric) for metric in record["metrics"]],
        [Param(**param) for param in record["params"]],
        [RunTag(**tag) for tag in record["tags"]],
    )
    for kind in values:
        for value in kind:
            value.to_proto()
    return values


def _line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"


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
