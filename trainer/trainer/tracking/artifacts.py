"""Artifact repositories of a job: `job:<real URI>` on global rank 0, `null:` on every other rank."""

import os
import posixpath
import shutil
from pathlib import Path
from typing import Any

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository, verify_artifact_path

from trainer.tracking import outbox
from trainer.tracking.job import Job
from trainer.tracking.schemes import JOB_ARTIFACTS, JOB_SCHEME, SERVER_VARIABLE


def job_artifact_repository(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> ArtifactRepository:
    """The repository behind `job:<real URI>` (the entry point that MLflow calls).

    For the artifacts of the job's own run it is the job's outbox. For all else, the files of logged models above all,
    it is the real one, reached through the real server: these are still sent at once.
    """
    # MLflow's registry loads this module while it is being imported itself.
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.tracking import get_tracking_uri

    uri = artifact_uri.removeprefix(JOB_ARTIFACTS)
    server_uri = os.environ.get(SERVER_VARIABLE) or (tracking_uri or get_tracking_uri()).removeprefix(JOB_SCHEME)
    real = get_artifact_repository(uri, tracking_uri=server_uri, registry_uri=registry_uri)
    job = Job.of_this_process()
    run = job.run_record()
    if run is None or not f"{uri}/".startswith(f"{run.artifact_uri}/"):
        return real
    return JobArtifactRepository(artifact_uri, job, run.run_id, uri[len(run.artifact_uri) :].strip("/"), real)


class JobArtifactRepository(ArtifactRepository):
    """Global rank 0: files go to the job's outbox, and launch delivers them; what still waits there can be read.

    Args:
        artifact_uri: `job:<real URI>`.
        job: Whose outbox.
        run_id: The job's run.
        root: Where in the run's artifacts this repository starts; "" is the whole.
        real: The repository that the server has.
    """

    def __init__(self, artifact_uri: str, job: Job, run_id: str, root: str, real: ArtifactRepository) -> None:
        super().__init__(artifact_uri)
        self._job = job
        self._run_id = run_id
        self._root = root
        self._real = real

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        verify_artifact_path(artifact_path)
        path = posixpath.join(self._root, artifact_path or "", Path(local_file).name)
        outbox.put(self._job, self._run_id, Path(local_file), path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        for folder, _, names in os.walk(local_dir):
            relative = Path(folder).relative_to(local_dir).as_posix()
            inside = posixpath.normpath(posixpath.join(artifact_path or "", relative))
            for name in sorted(names):
                self.log_artifact(os.path.join(folder, name), None if inside == "." else inside)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        # The outbox first: what is delivered between the two is then in both and not in neither.
        waiting = outbox.children(self._job, posixpath.join(self._root, path or ""))
        found = {info.path: info for info in self._real.list_artifacts(path)}
        for name, size in waiting.items():
            relative = posixpath.relpath(name, self._root) if self._root else name
            found[relative] = FileInfo(relative, size is None, size)
        return sorted(found.values(), key=lambda info: info.path)

    def _download_file(self, remote_file_path: str, local_path: str) -> Any:
        waiting = outbox.find(self._job, posixpath.join(self._root, remote_file_path))
        if waiting is not None:
            try:
                shutil.copyfile(waiting, local_path)
                return
            except FileNotFoundError:  # delivered in this moment
                pass
        self._real._download_file(remote_file_path, local_path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        self._real.delete_artifacts(artifact_path)


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
