"""What launch, the workers and the server call things: URI schemes (see pyproject.toml), a variable, a tag, metrics."""

import os

JOB_SCHEME = "job+"
"""Before the real server's URL: the job's tracking store (store.py)."""
JOB_ARTIFACTS = "job:"
"""Before the real artifact URI: the job's artifact repository (artifacts.py)."""
NULL_ARTIFACTS = "null:/"
"""The artifact URI of everything on ranks other than 0."""

SERVER_VARIABLE = "TRAINER_SERVER_URI"
"""Environment variable with the real server's URL; scripts overwrite MLflow's own by `mlflow.set_tracking_uri`."""


def jobs_server() -> str | None:
    """The real server's URL in a worker of a job; None in any other process."""
    return os.environ.get(SERVER_VARIABLE) if "RANK" in os.environ else None


JOB_TAG = "job"
"""The tag with the name of a run's job folder, by which the run is found again."""

MAX_TAG_LENGTH = 5000
"""Of a tag's value; servers of every age take it."""
SYSTEM_METRICS = "system/"
"""Before the name of each, as MLflow's UI groups them."""
