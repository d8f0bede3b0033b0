"""The model registry as a job sees it: the server's on global rank 0, null on every other rank.

Registered through MLflow's plugin entry point `mlflow.model_registry_store`: without it every rank of a script that
logs a model under a registered name (`log_model(…, registered_model_name=…)`) would register one.
"""

import os
from functools import partial
from typing import Any

from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.store.model_registry.rest_store import RestStore
from mlflow.utils.credentials import get_default_host_creds

from trainer.tracking.schemes import jobs_server


def registry_store(store_uri: str, tracking_uri: str | None = None) -> RestStore:
    """Build the registry's store for a plain `http(s)://…` (the entry point that MLflow calls)."""
    server_uri = jobs_server()
    store = NullRegistry if server_uri is not None and os.environ["RANK"] != "0" else RestStore
    return store(partial(get_default_host_creds, server_uri or store_uri))


class NullRegistry(RestStore):
    """Writes vanish, and what they return is made up; reads go to the server."""

    def create_registered_model(self, name: str, *args: Any, **kwargs: Any) -> RegisteredModel:
        return RegisteredModel(name)

    update_registered_model = get_registered_model = create_registered_model

    def create_model_version(self, name: str, *args: Any, **kwargs: Any) -> ModelVersion:
        return ModelVersion(name, "0", 0, status="READY")

    def update_model_version(self, name: str, *args: Any, **kwargs: Any) -> ModelVersion:
        return self.create_model_version(name)

    transition_model_version_stage = update_model_version

    def get_model_version(self, name: str, version: str) -> ModelVersion:
        return self.create_model_version(name) if version == "0" else super().get_model_version(name, version)

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        return None

    set_registered_model_alias = delete_registered_model_alias = _nothing
    set_registered_model_tag = delete_registered_model_tag = delete_registered_model = _nothing
    set_model_version_tag = delete_model_version_tag = delete_model_version = _nothing
