"""Writes to the server beside `log_batch`, as records of the spool: inputs, outputs, what belongs to logged models.

Each is the REST call that MLflow's own store would have made, and launch makes it later.
"""

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message
from mlflow.entities import LoggedModel, LoggedModelParameter, LoggedModelTag
from mlflow.protos import service_pb2
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.proto_json_utils import message_to_json

from trainer.tracking.spool import Record

DEFERRED = {
    api.__name__: api
    for api in (
        service_pb2.DeleteTag,
        service_pb2.LogInputs,
        service_pb2.LogLoggedModelParamsRequest,
        service_pb2.LogModel,
        service_pb2.LogOutputs,
        service_pb2.SetLoggedModelTags,
        service_pb2.DeleteLoggedModelTag,
    )
}
"""The calls whose answer says nothing, so that nobody has to wait for it."""
PROMISE_TAG = "promise"
"""A logged model's tag with the id that the job gave it while the server was away; by it the model is found again."""


def of_call(run_id: str, api: type[Message], body: str | None, endpoint: str | None) -> Record:
    """A REST call as a spool record."""
    return {"run_id": run_id, "call": api.__name__, "body": body, "endpoint": endpoint}


def removal_of_tag(run_id: str, key: str) -> Record:
    """A tag of a run to be deleted, as a spool record."""
    return of_call(run_id, service_pb2.DeleteTag, message_to_json(service_pb2.DeleteTag(run_id=run_id, key=key)), None)


def prepared(store: RestStore, record: Record) -> Callable[[], None]:
    """The call of a record, to be made; it raises MlflowException where the server is away, or refuses it.

    Raises:
        KeyError: The record is of no such call.
    """
    api = DEFERRED[record["call"]]

    return lambda: store._call_endpoint(api, record["body"], record["endpoint"])


def asks_for_less(record: Record) -> bool:
    """Whether a record's call deletes something: done too where that is not there, deleted before a crash say."""
    return record.get("call", "").startswith("Delete")


def of_model(run_id: str, model: LoggedModel) -> Record:
    """A logged model that the server still has to make, as a spool record."""
    return {
        "run_id": run_id,
        "model": model.model_id,
        "location": model.artifact_location,
        "experiment_id": model.experiment_id,
        "name": model.name,
        "source_run_id": model.source_run_id,
        "tags_of_model": model.tags,
        "params_of_model": model.params,
        "model_type": model.model_type,
    }


def make_model(store: RestStore, record: Record) -> dict[str, str]:
    """Have the server make a promised model, unless it has.

    Args:
        store: The server's.
        record: Of the model, with the real names of run and experiment.

    Returns:
        What the server has given: promised name to real one.

    Raises:
        MlflowException: The server is away, or refuses it.
    """
    filter_string = f"tags.{PROMISE_TAG} = '{record['model']}'"
    found = list(store.search_logged_models([record["experiment_id"]], filter_string, max_results=1))
    model = found[0] if found else _create(store, record)
    return {record["model"]: model.model_id, record["location"]: model.artifact_location}


def _create(store: RestStore, record: Record) -> LoggedModel:
    tags: dict[str, Any] = {**record["tags_of_model"], PROMISE_TAG: record["model"]}
    return store.create_logged_model(
        record["experiment_id"],
        record["name"],
        record["source_run_id"],
        [LoggedModelTag(key, value) for key, value in tags.items()],
        [LoggedModelParameter(key, value) for key, value in record["params_of_model"].items()],
        record["model_type"],
    )
