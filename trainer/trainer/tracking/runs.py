"""Finds a job's run on the server, where the job does not know its id."""

from mlflow.entities import Run, ViewType
from mlflow.store.tracking.rest_store import RestStore

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
