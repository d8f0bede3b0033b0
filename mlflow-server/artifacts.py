"""Every artifact in one stream: the bucket as a tar to stdout, or such a tar from stdin into the bucket.

    artifacts.py save >artifacts.tar
    artifacts.py load <artifacts.tar    reads everything back afterwards, and fails where it differs

Both end with one line on stderr: the number of objects, of their bytes, and a SHA-256 over all names and contents.
docker/backup and docker/restore run it in a container of this image, which has the credentials and the way to MinIO.
"""

import hashlib
import io
import mimetypes
import os
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing
from typing import Any, BinaryIO, Protocol

import boto3
import botocore.exceptions
from start import BUCKET, S3, fail, prepare_bucket, secret

PART = 8 * 2**20  # bytes; up to here an object is sent in one piece


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class Hashed:
    """A stream that is read once, and what passed. Nothing but `read`: boto3 would seek in what looks seekable."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        piece = self._stream.read(size)
        self._sha256.update(piece)
        self.size += len(piece)
        return piece

    def drain(self) -> "Hashed":
        while self.read(PART):
            pass
        return self

    @property
    def found(self) -> tuple[int, str]:
        return self.size, self._sha256.hexdigest()


Contents = dict[str, tuple[int, str]]  # of each object its bytes and SHA-256


def save(client: Any, target: BinaryIO) -> Contents:
    contents: Contents = {}
    deleted = 0
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for key in keys(client):
            try:
                answer = client.get_object(Bucket=BUCKET, Key=key)
            except client.exceptions.NoSuchKey:
                # Deleted since the listing, as `mlflow gc` does. One that is overwritten is whole, old or new.
                deleted += 1
                continue
            member = tarfile.TarInfo(key)
            # Of this very version, which may be newer than the listing.
            member.size, member.mtime = answer["ContentLength"], int(answer["LastModified"].timestamp())
            with closing(answer["Body"]) as body:
                stream = Hashed(body)
                tar.addfile(member, stream)  # type: ignore[arg-type]
            contents[key] = stream.found
    if deleted:
        print(f"{deleted} artifacts were deleted while the backup was written; they are not in it", file=sys.stderr)
    return contents


def load(client: Any, source: BinaryIO) -> Contents:
    prepare_bucket()
    contents: Contents = {}
    with tarfile.open(fileobj=source, mode="r|") as tar:
        for member in tar:
            stream = Hashed(tar.extractfile(member))  # type: ignore[arg-type]
            # As MLflow's S3ArtifactRepository does it.
            guesses = zip(("ContentType", "ContentEncoding"), mimetypes.guess_type(member.name), strict=True)
            about = {name: guess for name, guess in guesses if guess is not None}
            if member.size <= PART:
                client.put_object(Bucket=BUCKET, Key=member.name, Body=io.BytesIO(stream.read()), **about)
            else:
                client.upload_fileobj(stream, BUCKET, member.name, ExtraArgs=about)
            contents[member.name] = stream.found
    for key, expected in contents.items():
        with closing(client.get_object(Bucket=BUCKET, Key=key)["Body"]) as body:
            if Hashed(body).drain().found != expected:
                fail(f"the artifact {key!r} came back from MinIO different from what was sent")
    return contents


def keys(client: Any) -> Iterator[str]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for entry in page.get("Contents", ()):
            # An empty folder that somebody made in MinIO's console; artifacts have no folders.
            if not entry["Key"].endswith("/"):
                yield entry["Key"]


def summary(contents: Contents) -> str:
    whole = hashlib.sha256()
    for key, (size, sha256) in sorted(contents.items()):
        whole.update(f"{sha256} {size} {key!r}\n".encode())
    return f"{len(contents)} {sum(size for size, _ in contents.values())} {whole.hexdigest()}"


def main() -> None:
    os.environ["AWS_ACCESS_KEY_ID"] = secret("access_key")
    os.environ["AWS_SECRET_ACCESS_KEY"] = secret("secret_key")
    client = boto3.client("s3", endpoint_url=S3)
    try:
        match sys.argv[1:]:
            case ["save"]:
                contents = save(client, sys.stdout.buffer)
                sys.stdout.buffer.flush()
            case ["load"]:
                contents = load(client, sys.stdin.buffer)
            case _:
                fail("artifacts.py save | load")
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        fail(f"MinIO at {S3}: {error}")
    except (OSError, tarfile.TarError) as error:
        fail(f"the stream of artifacts broke off: {error}")
    print(summary(contents), file=sys.stderr)


if __name__ == "__main__":
    main()
