"""Artifact repositories of a job: `job:<real URI>` on global rank 0, `null:` on every other rank."""

from typing import Any

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from trainer.tracking.schemes import JOB_ARTIFACTS, JOB_SCHEME


def job_artifact_repository(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> ArtifactRepository:
    """The repository behind `job:<real URI>`, reached through the real server instead of the job's store."""
    # MLflow's registry loads this module while it is being imported itself.
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(
        artifact_uri.removeprefix(JOB_ARTIFACTS),
        tracking_uri=tracking_uri.removeprefix(JOB_SCHEME) if tracking_uri else None,
        registry_uri=registry_uri,
    )


class NullArtifactRepository(ArtifactRepository):
    """Takes everything, keeps nothing."""

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        return None

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        return None

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        return []

    def _download_file(self, remote_file_path: str, local_path: str) -> Any:
        raise FileNotFoundError(f"{remote_file_path}: ranks other than 0 have no artifacts")
