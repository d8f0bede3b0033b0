"""Delivers a job's spool to the MLflow server, in the background, in order, until the job has ended.

Delivering values twice does no harm: the server keeps one of equal (key, step, timestamp, value). So the place in the
spool moves on only after the server has taken what was read, and a crash repeats that at most.
Files have a queue of their own (uploads.py).

What waits, waits for everything that can come right again: a server that is away, a database that takes no writes, a
run that was deleted and may be restored, another server in the place of the right one. Set aside is only what the
server refuses in itself: it says so (4xx), or it fails at it (500) again and again while it takes others of the kind.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from mlflow.entities import LoggedModelStatus, Run, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.time import get_current_time_millis
from mlflow.utils.validation import MAX_ENTITIES_PER_BATCH

from trainer.tracking import batches, calls, promises, runs, server, spool
from trainer.tracking.answers import in_one_line, is_final, is_missing, may_be_of_what_was_asked
from trainer.tracking.job import Job, RunRecord
from trainer.tracking.outage import TRACKING, Outage
from trainer.tracking.promises import Promises
from trainer.tracking.schemes import JOB_TAG
from trainer.tracking.spool import Record, SpoolReader
from trainer.tracking.uploads import Uploads

INTERVAL_SECONDS = 1.0
UPLOADS_SECONDS = 10.0
"""How long the status waits for the last files, so that whoever sees it finds them; it does not depend on them."""
MODEL_TRIES = 3
TRIES = 5
"""How often in a row the server may fail at a batch before it is taken apart, and then at each value."""
SIGN_SECONDS = 10.0
"""How long a server that was away has for a sign of life."""
PROBE = "delivery.probe"
"""A tag that is set, and removed, to see whether it is the server or one batch that is at fault."""
DELETED = "the run was deleted on the server, where it can be restored"
NOT_THERE = "the server does not know the run: another one has taken its place, or it was deleted for good"


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
        self._promises = Promises(job)
        self._outage = Outage(job, TRACKING)
        self._aside: list[tuple[bytes, str]] = []
        self._last_error = ""
        self._gone = ""
        """Why the server cannot take anything for the run, where that is so."""
        self._faults = 0
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
        return runs.by_id(self._store, record.run_id)

    def open_run(self) -> None:
        """Have the server make the run that it was away for, unless it has.

        Raises:
            MlflowException: The server is away, or refuses it.
        """
        promised = self._job.run_record()
        if promised is None or not promised.promised:
            return
        experiment_id = self._experiment(promised.experiment)
        run = runs.of_job(self._store, experiment_id, self._job) or self._store.create_run(
            experiment_id, promised.user_id, promised.start_time, [RunTag(JOB_TAG, self._job.run_name)], promised.name
        )
        self._promises.keep({promised.run_id: run.info.run_id, promised.artifact_uri: run.info.artifact_uri})
        self._job.write_run_record(RunRecord.of(run.info, promised.experiment, self._server_uri))

    def _experiment(self, name: str) -> str:
        found = self._store.get_experiment_by_name(name)
        return found.experiment_id if found else self._store.create_experiment(name)

    def find_run(self) -> bool:
        """Whether the job has a run; the one that this server made for an asker who died before the answer is recorded.

        Raises:
            MlflowException: The server is away.
        """
        asked = self._job.asking()
        if self._job.run_record() is not None or asked is None or asked[1] != self._server_uri:
            return self._job.run_record() is not None
        run = runs.of_job(self._store, asked[0], self._job)
        if run is not None:
            experiment = self._store.get_experiment(run.info.experiment_id).name
            self._job.write_run_record(RunRecord.of(run.info, experiment, self._server_uri))
        return run is not None

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
                break
            if waited > 3 and not said:
                said = True
                self._say(f"the job has ended; the server has up to {patience:.0f} s to take the rest (Ctrl-C ends it)")
        self._abandoned.set()
        self._uploads.abandon()
        return self._closed

    def _close(self, status: int, end_time: int) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._uploads.finish()
        began, told = time.monotonic(), False
        while not self._abandoned.is_set():
            uploaded = self._uploads.done(within=INTERVAL_SECONDS)
            delivered = self._try(self._deliver_pending)  # behind the uploads, which record the store's outages
            if delivered and not told and (uploaded or time.monotonic() - began > UPLOADS_SECONDS):
                told = self._set_status(status, end_time)
            if delivered and uploaded and told and self._finish_models():
                self._closed = True
                return
            if self._gone == DELETED:  # nobody restores it in the minutes after
                return
            self._abandoned.wait(INTERVAL_SECONDS)

    def _try(self, deliver: Callable[[], bool]) -> bool:
        try:
            return deliver()
        except Exception as error:  # the state folder's disk, full say; whatever it is, a later try may do better
            if str(error) != self._last_error:
                self._last_error = str(error)
                self._say(f"the spool cannot be delivered: {error}")
            return False

    def _deliver_pending(self) -> bool:
        """Deliver every complete record of values; False if the server did not take them all."""
        # Asked first where it was away: to make up a batch each second takes time that a training may want.
        if self._outage.lasts and not server.is_there(self._server_uri, SIGN_SECONDS):
            return False
        try:
            self.open_run()
        except MlflowException as error:
            return self._away(error)
        if self._to_reopen and not self._reopen():
            return False
        while lines := self._reader.read(most=MAX_ENTITIES_PER_BATCH):
            self._aside = [(line.raw, "unreadable") for line in lines if line.record is None and line.raw.strip()]
            records = [line.record for line in lines if line.record is not None and not spool.is_of_files(line.record)]
            for batch in batches.in_batches(records):
                if not self._deliver(batch):
                    return False
            # Only now, with the place that moves on: a later try would set the same records aside once more.
            self._set_aside()
            self._reader.delivered(lines[-1].end)
            self._faults = 0
        return True

    def _reopen(self) -> bool:
        """Set a run that was closed to RUNNING again; False if the server is away."""
        record = self._job.run_record()
        assert record is not None, "a job that goes on has a run"
        if self._can_take_nothing():
            return False
        try:
            self._store.update_run_info(record.run_id, RunStatus.RUNNING, None, None)
        except MlflowException as error:
            if not is_final(error):
                return self._away(error)
        self._to_reopen = False
        return True

    def _deliver(self, batch: list[Record]) -> bool:
        """Post one batch; False if the server is away."""
        try:
            post = self._post_of(batch)
        except Exception as error:  # whatever MLflow's entities say to what is no value of theirs
            return self._refused(batch, str(error))
        try:
            post()
        except MlflowException as error:
            if not is_final(error):
                return self._failed(batch, error)
            if self._can_take_nothing():
                return False
            if not (is_missing(error) and calls.asks_for_less(batch[0])):
                return self._refused(batch, str(error.message))
        except ValueError as error:  # no answer of an MLflow server's: a proxy's page, say
            return self._away(error)
        return self._accepted(batch)

    def _accepted(self, batch: list[Record]) -> bool:
        if self._gone:
            self._gone = ""
            self._say("the run is there again")
        self._back()
        for record in batch:
            self.latest.update({metric["key"]: metric["value"] for metric in record.get("metrics", [])})
        return True

    def _failed(self, batch: list[Record], error: Exception) -> bool:
        """The server fails at a batch: it is away, or something in it is at fault; False to try it again later."""
        self._faults = self._faults + 1 if may_be_of_what_was_asked(error) else 0
        if self._faults < TRIES:
            return self._away(error)
        pieces = [part for record in batch for part in batches.parts(record) or [record]]
        try:
            failing = [piece for piece in pieces if self._fails_at(piece)]
            metrics = [piece for piece in pieces if piece.get("metrics")]
            if metrics and all(metric in failing for metric in metrics):
                self._faults = 0
                return self._away(error)  # it takes no metric at all; others come, by which this one can be judged
            for _ in range(TRIES):
                if self._abandoned.wait(INTERVAL_SECONDS):
                    return False
                failing = [piece for piece in failing if self._fails_at(piece)]
        except MlflowException as other:
            return self._away(other)
        if failing and not self._takes_a_tag():
            return self._away(error)
        for piece in failing:
            self._refuse(piece, str(error))
        self._back()
        return True

    def _fails_at(self, piece: Record) -> bool:
        """Whether the server fails at what it may also be at fault itself for; else the piece is seen to.

        Raises:
            MlflowException: The server is away, or has not the run.
        """
        try:
            self._post_of([piece])()
        except MlflowException as error:
            if may_be_of_what_was_asked(error):
                return True
            if not is_final(error) or self._can_take_nothing():
                raise
            self._refuse(piece, str(error.message))
        else:
            self._accepted([piece])
        return False

    def _post_of(self, batch: list[Record]) -> Callable[[], None]:
        """What delivers a batch, under the names that the server has given."""
        first = batch[0]
        if "model" in first:
            return partial(self._make_model, first)
        if "call" in first:
            return calls.prepared(self._store, self._promises.in_record(first))
        record = self._promises.in_record(batches.merged(batch))
        return partial(self._store.log_batch, record["run_id"], *batches.values(record))

    def _make_model(self, record: Record) -> None:
        if self._promises.in_text(record["model"]) != record["model"]:  # made before a crash
            return
        run = self._job.run_record()
        assert run is not None, "a model is of a run"
        real = {key: self._promises.in_record({key: value})[key] for key, value in record.items()}
        if record["experiment_id"].startswith(promises.EXPERIMENT):
            real["experiment_id"] = run.experiment_id
        self._promises.keep(calls.make_model(self._store, real))

    def _refused(self, batch: list[Record], reason: str) -> bool:
        """Set aside what is refused, and deliver the rest of the batch; False if the server is away."""
        if len(batch) > 1:  # find the one that is refused; the others must not suffer for it
            return all(self._deliver([record]) for record in batch)
        if parts := batches.parts(batch[0]):
            return all(self._deliver([part]) for part in parts)
        self._refuse(batch[0], reason)
        self._back()
        return True

    def _refuse(self, record: Record, reason: str) -> None:
        self._aside.append((batches.as_line(record), reason))
        if "model" in record:
            self._promises.keep({record["location"]: promises.refused_uri()})

    def _takes_a_tag(self) -> bool:
        """Whether the server, and its database, take anything for the run."""
        record = self._job.run_record()
        assert record is not None, "a batch is of a run"
        try:
            # Not a value that is there already: that would be no write, and a read-only database would "take" it.
            self._store.set_tag(record.run_id, RunTag(PROBE, str(get_current_time_millis())))
            self._store.delete_tag(record.run_id, PROBE)
        except (MlflowException, ValueError):
            return False
        return True

    def _can_take_nothing(self) -> bool:
        """Whether the server has no such run to take anything for, or is away now; said once."""
        try:
            run = self.run()
        except MlflowException as error:
            return not self._away(error)
        gone = NOT_THERE if run is None else DELETED if runs.is_deleted(run) else ""
        if gone and gone != self._gone:
            self._say(f"{gone}; training goes on, its records wait on disk")
        self._gone = gone
        return bool(gone)

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
            return is_final(error) or self._model_tries >= MODEL_TRIES

    def _set_status(self, status: int, end_time: int) -> bool:
        record = self._job.run_record()
        if record is None:
            return True
        try:
            self._store.update_run_info(record.run_id, status, end_time, None)
        except MlflowException as error:
            if not is_final(error):
                return self._away(error)
            if self._can_take_nothing():
                return False
            self._say(f"the server refused status {RunStatus.to_string(status)}: {error.message}")
        return True

    def _set_aside(self) -> None:
        if self._aside:
            spool.set_aside(self._job.refused, [raw for raw, _ in self._aside])
        for reason, count in Counter(" ".join(reason.split())[:200] for _, reason in self._aside).items():
            what = "one record is" if count == 1 else f"{count} records are"
            self._say(f"{what} set aside in {self._job.refused}: {reason}")

    def _away(self, error: Exception) -> bool:
        if self._outage.begin():
            self._say(f"the tracking server {in_one_line(error)}; training goes on, its records wait on disk")
        return False

    def _back(self) -> None:
        if (seconds := self._outage.end()) is not None:
            self._say(f"the tracking server is back after {seconds:.0f} s")
