"""Artifact repositories of a job: `job:<real URI>` on global rank 0, `null:` on every other rank."""

import errno
import os
import posixpath
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository, verify_artifact_path

from trainer.tracking import outbox, promises, server
from trainer.tracking.job import Job
from trainer.tracking.promises import Promises
from trainer.tracking.schemes import JOB_ARTIFACTS, JOB_SCHEME, SERVER_VARIABLE
from trainer.tracking.spool import writer_of

MOST_BYTES_IN_MEMORY = 2**28
"""Of one file that waits there for room on a full disk."""


def job_artifact_repository(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> ArtifactRepository:
    """The repository behind `job:<real URI>` (the entry point that MLflow calls)."""
    from mlflow.tracking import get_tracking_uri  # MLflow loads this module while it is being imported itself

    server_uri = os.environ.get(SERVER_VARIABLE) or (tracking_uri or get_tracking_uri()).removeprefix(JOB_SCHEME)
    return JobArtifactRepository(artifact_uri, Job.of_this_process(), server_uri)


class JobArtifactRepository(ArtifactRepository):
    """Global rank 0: files go to the job's outbox, and launch delivers them; what still waits there can be read.

    Args:
        artifact_uri: `job:<URI>`, of the run's artifacts, of a folder of them, or of a logged model's.
        job: Whose outbox.
        server_uri: http(s) URL of the MLflow server.
    """

    def __init__(self, artifact_uri: str, job: Job, server_uri: str) -> None:
        super().__init__(artifact_uri)
        self._job = job
        self._server_uri = server_uri
        self._promises = Promises(job)
        self._uri = artifact_uri.removeprefix(JOB_ARTIFACTS)

    def _place(self) -> tuple[str, str]:
        """Whose artifacts these are, "" for the run's or else the URI of a logged model's; and the folder in them."""
        run = self._job.run_record()
        uri = self._promises.in_text(self._uri)
        if run is not None and f"{uri}/".startswith(f"{run.artifact_uri}/"):
            return "", uri[len(run.artifact_uri) :].strip("/")
        return self._uri, ""

    def _real(self) -> ArtifactRepository | None:
        """The repository that the server has; None while it is away."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        uri = self._promises.in_text(self._uri)
        if uri.startswith(promises.URI) or not server.is_there(self._server_uri):
            return None
        return get_artifact_repository(uri, tracking_uri=self._server_uri)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        verify_artifact_path(artifact_path)
        to, root = self._place()
        run = self._job.run_record()
        path = posixpath.join(root, artifact_path or "", Path(local_file).name)
        put = partial(outbox.put, self._job, run.run_id if run else "", path=path, to=to)
        try:
            put(Path(local_file))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or os.path.getsize(local_file) > MOST_BYTES_IN_MEMORY:
                raise
            # Its owner may delete it now.
            writer_of(self._job.spool).do(partial(put, Path(local_file).read_bytes()))

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        for folder, _, names in os.walk(local_dir):
            relative = Path(folder).relative_to(local_dir).as_posix()
            inside = posixpath.normpath(posixpath.join(artifact_path or "", relative))
            for name in sorted(names):
                self.log_artifact(os.path.join(folder, name), None if inside == "." else inside)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        to, root = self._place()
        # The outbox first: what is delivered between the two is then in both and not in neither.
        waiting = outbox.children(self._job, posixpath.join(root, path or ""), to)
        real = self._real()
        found = {info.path: info for info in (real.list_artifacts(path) if real else [])}
        for name, size in waiting.items():
            relative = posixpath.relpath(name, root) if root else name
            found[relative] = FileInfo(relative, size is None, size)
        return sorted(found.values(), key=lambda info: info.path)

    def _download_file(self, remote_file_path: str, local_path: str) -> Any:
        to, root = self._place()
        waiting = outbox.find(self._job, posixpath.join(root, remote_file_path), to)
        if waiting is not None:
            try:
                shutil.copyfile(waiting, local_path)
                return
            except FileNotFoundError:  # delivered in this moment
                pass
        real = self._real()
        if real is None:
            raise FileNotFoundError(f"{remote_file_path} is at {self._server_uri}, which does not answer")
        real._download_file(remote_file_path, local_path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        if real := self._real():
            real.delete_artifacts(artifact_path)


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
