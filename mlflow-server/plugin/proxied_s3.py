"""An S3 artifact store that is reached through the MLflow server only.

MLflow's own S3 repository lets the server advertise presigned URLs, and clients then fetch every artifact from the S3
server directly (multipart transfer, on by default, no setting turns it off on the server). Here that server is on an
internal network: each download would end in minutes of retries and an error. This one offers plain transfer alone,
which goes through the server. Registered by the metadata beside it, as MLflow's plugins are:
https://mlflow.org/docs/latest/ml/plugins/
"""

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository


class ProxiedS3ArtifactRepository(ArtifactRepository):
    """`proxied-s3://bucket/path`: the same as `s3://bucket/path`, without what its mixins advertise."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._s3 = S3ArtifactRepository(artifact_uri.removeprefix("proxied-"), tracking_uri, registry_uri)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        self._s3.log_artifact(local_file, artifact_path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        self._s3.log_artifacts(local_dir, artifact_path)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        return self._s3.list_artifacts(path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        self._s3.delete_artifacts(artifact_path)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self._s3._download_file(remote_file_path, local_path)
