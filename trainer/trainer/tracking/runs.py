"""Finds a job's run on the server, with its id or without."""

from mlflow.entities import LifecycleStage, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.rest_store import RestStore

from trainer.tracking.answers import is_missing
from trainer.tracking.job import Job
from trainer.tracking.schemes import JOB_TAG


def of_job(store: RestStore, experiment_id: str, job: Job) -> Run | None:
    """The run with the job's tag, or None.

    Raises:
        MlflowException: The server is away.
    """
    filter_string = f"tags.{JOB_TAG} = '{job.run_name}'"
    found = store.search_runs([experiment_id], filter_string, ViewType.ACTIVE_ONLY, max_results=1)
    return next(iter(found), None)


def by_id(store: RestStore, run_id: str) -> Run | None:
    """The run with this id, deleted or not; None where the server does not know it.

    Raises:
        MlflowException: The server is away.
    """
    try:
        return store.get_run(run_id)
    except MlflowException as error:
        if is_missing(error):
            return None
        raise


def is_deleted(run: Run) -> bool:
    """Whether somebody has deleted it, in the UI say; it can be restored."""
    return run.info.lifecycle_stage != LifecycleStage.ACTIVE
