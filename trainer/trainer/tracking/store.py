"""The job's own tracking store: what `MLFLOW_TRACKING_URI=job+http://…` means inside a worker.

On global rank 0, writes go to the job's spool and return at once, asking for a run gives the job's one run, whoever
asks, and a status is left to launch; reads go to the server. Where the server is away the run, its experiment and its
models get names of the job's own until it is back (promises.py). On every other rank the store is null.
Both are registered through MLflow's plugin entry point `mlflow.tracking_store`; nothing in MLflow is patched.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from mlflow.entities import (
    Experiment,
    LoggedModel,
    LoggedModelParameter,
    LoggedModelStatus,
    LoggedModelTag,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.mlflow_tags import MLFLOW_AUTOLOGGING, MLFLOW_RUN_NAME
from mlflow.utils.time import get_current_time_millis
from mlflow.utils.validation import _validate_batch_log_limits, _validate_metric, _validate_param, _validate_tag

from trainer.terminal import say
from trainer.tracking import calls, entities, promises, runs, server, spool
from trainer.tracking.answers import is_final
from trainer.tracking.batches import record_of
from trainer.tracking.history import DRIFT, of_earlier_starts
from trainer.tracking.job import Job, RunRecord
from trainer.tracking.loggers import let_loggers_ask_first
from trainer.tracking.null_store import NullStore
from trainer.tracking.promises import Promises
from trainer.tracking.schemes import JOB_ARTIFACTS, JOB_SCHEME, JOB_TAG, MAX_TAG_LENGTH, SYSTEM_METRICS, jobs_server
from trainer.tracking.spool import writer_of

T = TypeVar("T")

AUTOLOGGING_MODES = (("Mode", "training"), ("Mode", "testing"))
READ_PATIENCE_SECONDS = 5.0
"""How long a read of the job's own run waits for what the job has written; after that it is as old as it is."""


def job_store(store_uri: str, artifact_uri: str | None = None) -> RestStore:
    """Build the store for this process (the entry point that MLflow calls).

    Args:
        store_uri: `job+http://…` or `job+https://…`: the real server's URL behind the scheme `job+`.
        artifact_uri: Part of MLflow's plugin signature; a REST server decides where artifacts go.
    """
    server_uri = store_uri.removeprefix(JOB_SCHEME)
    if int(os.environ.get("RANK", "0")) == 0:
        return JobStore(server_uri, Job.of_this_process())
    return NullStore(server_uri)


def http_store(store_uri: str, artifact_uri: str | None = None) -> RestStore:
    """Build the store for a plain `http(s)://…` (the entry point that MLflow calls).

    In a worker it is the job's: scripts often name the server of their author (`mlflow.set_tracking_uri("http://…")`),
    and each rank would open a run of its own there. Anywhere else it is MLflow's own.
    """
    server_uri = jobs_server()
    if server_uri is None:
        return RestStore(partial(get_default_host_creds, store_uri))
    if store_uri.rstrip("/") != server_uri and os.environ["RANK"] == "0":
        say(f"the script names the tracking server {store_uri}: its run is at {server_uri}")
    return job_store(server_uri)


class JobStore(RestStore):
    """Global rank 0: the one writer of the job's one run."""

    def __init__(self, server_uri: str, job: Job) -> None:
        super().__init__(partial(get_default_host_creds, server_uri))
        self._job = job
        self._server_uri = server_uri
        self._before = of_earlier_starts(job.folder)
        self._spool = writer_of(job.spool)
        self._promises = Promises(job)
        self._models: dict[str, LoggedModel] = {}
        self._params: dict[tuple[str, str], str] = {}
        self._wrote = False
        self._patient = True
        self._epoch: tuple[str, int, float] | None = None

    def create_run(
        self, experiment_id: str, user_id: str, start_time: int, tags: list[RunTag], run_name: str | None
    ) -> Run:
        """Return the job's one run; the first call creates it, in the experiment that was asked for."""
        if any(tag.key == MLFLOW_AUTOLOGGING for tag in tags):
            let_loggers_ask_first()
        with self._job.run_lock():
            record = self._job.run_record()
            if record is None:
                # A seeded process draws the same random name every time, so the job brings its own. MLFlowLogger gives
                # the name as a tag.
                named = run_name or {tag.key: tag.value for tag in tags}.get(MLFLOW_RUN_NAME) or self._job.run_name
                record = self._made(experiment_id, user_id, start_time, tags, named)
                if record is None:
                    record = self._promised(experiment_id, user_id, start_time, named)
                    self.log_batch(record.run_id, [], [], tags)
        # As far as the job knows, without asking the server: a job that goes on may do so while it is away.
        return Run(entities.own_info(record), RunData(tags=tags))

    def _made(
        self, experiment_id: str, user_id: str, start_time: int, tags: list[RunTag], name: str
    ) -> RunRecord | None:
        """The run that the server has made; None where it is away."""
        if experiment_id.startswith(promises.EXPERIMENT) or not self._answers():
            return None
        try:
            experiment = super().get_experiment(experiment_id).name
            run = self._asked_for(experiment_id)
            if run is None:
                self._job.write_asking(experiment_id, self._server_uri)
                tags = [*tags, RunTag(JOB_TAG, self._job.run_name)]
                run = super().create_run(experiment_id, user_id, start_time, tags, name)
        except MlflowException as error:
            if is_final(error):
                raise
            return None  # if the server has made it all the same, launch finds it by its tag
        record = RunRecord.of(run.info, experiment, self._server_uri)
        self._job.write_run_record(record)
        return record

    def _asked_for(self, experiment_id: str) -> Run | None:
        """The run that the server has made for an earlier start of this rank, which died before the answer."""
        return None if self._job.asking() is None else runs.of_job(self, experiment_id, self._job)

    def _promised(self, experiment_id: str, user_id: str, start_time: int, name: str) -> RunRecord:
        """A run that launch has the server make once it is back."""
        try:
            experiment = self.get_experiment(experiment_id).name
        except MlflowException:  # it went away after it had given the id
            experiment = os.environ["MLFLOW_EXPERIMENT_NAME"]
        record = RunRecord(
            run_id=promises.run_id(),
            experiment_id=promises.EXPERIMENT + experiment,
            experiment=experiment,
            name=name,
            artifact_uri=promises.uri(),
            start_time=start_time,
            user_id=user_id,
            server=self._server_uri,
            promised=True,
        )
        self._job.write_run_record(record)
        return record

    def _answers(self) -> bool:
        """Whether the server is there: MLflow's own tries would keep the training waiting for minutes."""
        return server.is_there(self._server_uri)

    def _ask(self, ask: Callable[[], T], otherwise: T) -> T:
        """The server's answer, or what the job says where the server, or the database behind it, is away.

        Raises:
            MlflowException: The server refuses.
        """
        if not self._answers():
            return otherwise
        try:
            return ask()
        except MlflowException as error:
            if is_final(error):
                raise
            return otherwise

    def get_experiment(self, experiment_id: str) -> Experiment:
        record = self._job.run_record()
        if experiment_id.startswith(promises.EXPERIMENT):
            return entities.experiment(experiment_id, experiment_id.removeprefix(promises.EXPERIMENT))
        if record is not None and record.experiment_id == experiment_id:
            own = entities.experiment(experiment_id, record.experiment)
            return self._ask(partial(super().get_experiment, experiment_id), own)
        return super().get_experiment(experiment_id)

    def get_experiment_by_name(self, experiment_name: str) -> Experiment | None:
        record = self._job.run_record()
        if record is not None and record.experiment == experiment_name:
            return entities.experiment(record.experiment_id, experiment_name)
        promised = entities.experiment(promises.EXPERIMENT + experiment_name, experiment_name)
        return self._ask(partial(super().get_experiment_by_name, experiment_name), promised)

    def get_run(self, run_id: str) -> Run:
        self._wait_for_delivery()
        record = self._job.run_record()
        run_id = self._promises.in_text(run_id)
        if record is None or record.run_id != run_id:
            return entities.through_job(super().get_run(run_id))
        own = Run(entities.own_info(record), RunData())
        if record.promised:
            return own
        found = self._ask(partial(super().get_run, run_id), None)
        return own if found is None else entities.through_job(found)

    def get_metric_history(self, run_id: str, *args: Any, **kwargs: Any) -> PagedList[Metric]:
        self._wait_for_delivery()
        run_id = self._promises.in_text(run_id)
        return self._ask(partial(super().get_metric_history, run_id, *args, **kwargs), PagedList([], None))

    def _search_runs(self, *args: Any, **kwargs: Any) -> tuple[list[Run], str | None]:
        self._wait_for_delivery()
        return super()._search_runs(*args, **kwargs)

    def _wait_for_delivery(self) -> None:
        """Let a script that reads back what it has logged find it: launch delivers about once a second."""
        deadline = time.monotonic() + READ_PATIENCE_SECONDS
        while self._wrote:
            if spool.is_delivered(self._job.spool):
                self._wrote, self._patient = False, True
            elif not self._patient or time.monotonic() > deadline:
                self._patient = False  # the server is away: wait no more until something has been delivered
                return
            else:
                time.sleep(0.05)

    def update_run_info(self, run_id: str, run_status: int, end_time: int | None, run_name: str | None) -> RunInfo:
        """Keep a new name; leave the status to launch, which outlives a killed rank."""
        record = self._job.run_record()
        if record is None or record.run_id != self._promises.in_text(run_id):
            # Some other run, of which the script is the owner.
            return super().update_run_info(run_id, run_status, end_time, run_name)
        if run_name:
            self.set_tag(run_id, RunTag(MLFLOW_RUN_NAME, run_name))
        return entities.own_info(record)

    def delete_run(self, run_id: str) -> None:
        raise MlflowException("a training job cannot delete its own run; delete it in the UI", INVALID_PARAMETER_VALUE)

    def log_batch(self, run_id: str, metrics: list[Metric], params: list[Param], tags: list[RunTag]) -> None:
        """Append to the spool. Invalid values are refused here, as the server would, before anything is kept."""
        # Launch samples the machine for every job; a script's own sampler would double each point.
        metrics = [metric for metric in metrics if not metric.key.startswith(SYSTEM_METRICS)]
        metrics = [metric for metric in metrics if not self._repeats_the_epoch(run_id, metric)]
        metrics = [metric for metric in metrics if not self._before.takes_back(run_id, metric)]
        # Autologging's word for what its Trainer did last: on the run of a training it would read "testing".
        tags = [tag for tag in tags if (tag.key, tag.value) not in AUTOLOGGING_MODES]
        # Autologging gives two EarlyStoppings the same names in one batch: the first stands, as MLflow's params do.
        params = [param for at, param in enumerate(params) if param.key not in {other.key for other in params[:at]}]
        params, drifted = self._drifted(run_id, params)
        tags = [*tags, *drifted]
        _validate_batch_log_limits(metrics, params, tags)
        for metric in metrics:
            _validate_metric(metric.key, metric.value, metric.timestamp, metric.step)
        for tag in tags:
            _validate_tag(tag.key, tag.value)
        for param in params:
            _validate_param(param.key, param.value)
            known = self._params.get((run_id, param.key), param.value)
            if known != param.value:
                raise MlflowException(
                    f"param {param.key!r} of run {run_id} is {known!r} already and cannot become {param.value!r}; a "
                    "job is one run, also where its script starts several",
                    INVALID_PARAMETER_VALUE,
                )
        if metrics or params or tags:
            self._append(record_of(run_id, metrics, params, tags))
        self._params.update({(run_id, param.key): param.value for param in params})

    def _drifted(self, run_id: str, params: list[Param]) -> tuple[list[Param], list[RunTag]]:
        """The params without those that an earlier start of the job has set otherwise, and tags that name these."""
        drifts = {param.key: self._before.drift(run_id, param.key, param.value) for param in params}
        tags = [RunTag(DRIFT + key, drift[:MAX_TAG_LENGTH]) for key, drift in drifts.items() if drift is not None]
        return [param for param in params if self._before.param(run_id, param.key) is None], tags

    def _repeats_the_epoch(self, run_id: str, metric: Metric) -> bool:
        """Lightning hands a logger the epoch with every call: at a step that is validated it would stand twice."""
        if metric.key != "epoch":
            return False
        before, self._epoch = self._epoch, (run_id, metric.step, metric.value)
        return before == self._epoch

    def log_metric(self, run_id: str, metric: Metric) -> None:
        self.log_batch(run_id, [metric], [], [])

    def log_param(self, run_id: str, param: Param) -> None:
        self.log_batch(run_id, [], [param], [])

    def set_tag(self, run_id: str, tag: RunTag) -> None:
        self.log_batch(run_id, [], [], [tag])

    def _append(self, record: spool.Record) -> None:
        self._spool.append(record)
        self._wrote = True

    def _call_endpoint(self, api: Any, json_body: Any = None, endpoint: str | None = None, **kwargs: Any) -> Any:
        """What every call of MLflow's store goes through; those whose answer says nothing go to the spool."""
        if api.__name__ not in calls.DEFERRED:
            return super()._call_endpoint(api, json_body, endpoint, **kwargs)
        record = self._job.run_record()
        self._append(calls.of_call(record.run_id if record else "", api, json_body, endpoint))
        return api.Response()

    # Logged models: their ids come from the server, where it is there; their files go through the outbox like others.

    def create_logged_model(
        self,
        experiment_id: str,
        name: str | None = None,
        source_run_id: str | None = None,
        tags: list[LoggedModelTag] | None = None,
        params: list[LoggedModelParameter] | None = None,
        model_type: str | None = None,
    ) -> LoggedModel:
        """A model of the job's run, also where the script logs it outside of any: launch finishes what it leaves."""
        record = self._job.run_record()
        run_id = source_run_id or (record.run_id if record else None)
        model = None
        if self._answers() and not (record and record.promised):
            try:
                promised = record is not None and experiment_id.startswith(promises.EXPERIMENT)
                model = super().create_logged_model(
                    record.experiment_id if promised else experiment_id,
                    name,
                    self._promises.in_text(run_id) if run_id else None,
                    tags,
                    params,
                    model_type,
                )
            except MlflowException as error:
                if is_final(error):
                    raise
        if model is None:
            model = entities.promised_model(
                experiment_id, name, run_id, tags, params, model_type, get_current_time_millis()
            )
            self._append(calls.of_model(run_id or "", model))
        self._models[model.model_id] = entities.model_through_job(model)
        return model

    def get_logged_model(self, model_id: str, allow_deleted: bool = False) -> LoggedModel:
        """Of the job's own models as far as the job knows: what it has of them may still wait for the server."""
        if model_id not in self._models:
            return entities.model_through_job(super().get_logged_model(self._promises.in_text(model_id), allow_deleted))
        return self._models[model_id]

    def finalize_logged_model(self, model_id: str, status: LoggedModelStatus) -> LoggedModel:
        """Recorded behind the model's files, so that no model is ready before they are there."""
        model = self.get_logged_model(model_id)
        location = model.artifact_location.removeprefix(JOB_ARTIFACTS)
        self._append({"run_id": model.source_run_id or "", "finalize": model_id, "status": str(status), "to": location})
        model._status = status
        return model
