"""The tracking store of every rank but global 0."""

from functools import partial
from typing import Any

from mlflow.entities import Experiment, LifecycleStage, LoggedModel, LoggedModelStatus, Run, RunData, RunInfo
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.credentials import get_default_host_creds

from trainer.tracking import entities
from trainer.tracking.schemes import NULL_ARTIFACTS


class NullStore(RestStore):
    """Writes vanish, what is asked for is made up, no write reaches the network."""

    def __init__(self, server_uri: str) -> None:
        super().__init__(partial(get_default_host_creds, server_uri))

    def create_experiment(self, *args: Any, **kwargs: Any) -> str:
        return "0"

    def get_experiment(self, experiment_id: str) -> Experiment:
        return Experiment(experiment_id, "null", NULL_ARTIFACTS, LifecycleStage.ACTIVE)

    def get_experiment_by_name(self, experiment_name: str) -> Experiment:
        return Experiment("0", experiment_name, NULL_ARTIFACTS, LifecycleStage.ACTIVE)

    def create_run(self, experiment_id: str, user_id: str, start_time: int, *args: Any, **kwargs: Any) -> Run:
        return self.get_run("0" * 32)

    def get_run(self, run_id: str) -> Run:
        return Run(entities.run_info(run_id, "0", NULL_ARTIFACTS, 0, ""), RunData())

    def update_run_info(self, run_id: str, *args: Any, **kwargs: Any) -> RunInfo:
        return self.get_run(run_id).info

    def create_logged_model(self, *args: Any, **kwargs: Any) -> LoggedModel:
        return self.get_logged_model("m-" + "0" * 32)

    def get_logged_model(self, model_id: str, allow_deleted: bool = False) -> LoggedModel:
        return LoggedModel("0", model_id, "null", NULL_ARTIFACTS, 0, 0)

    def finalize_logged_model(self, model_id: str, status: LoggedModelStatus) -> LoggedModel:
        return self.get_logged_model(model_id)

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        return None

    log_batch = log_metric = log_param = set_tag = delete_tag = _nothing
    delete_run = restore_run = set_experiment_tag = log_inputs = log_outputs = record_logged_model = _nothing
    log_logged_model_params = set_logged_model_tags = delete_logged_model_tag = delete_logged_model = _nothing
