"""Delivers the files of a job's spool to the artifacts of its run and its logged models, one at a time and in order.

They have a place of their own in the spool and a thread of their own, so that a large or a refused file holds up no
metric. A copy is removed once the server has it, and only then the place moves on: a crash repeats one upload at most.

What the server refuses for good (4xx) is set aside. Where a file fails while the server otherwise answers, the artifact
store is given a small one: if it does not take that, it is down, and all wait for it; if it does, the file is at fault,
and it is set aside after `TRIES` tries with growing pauses. What is set aside lies in the job's `refused/`; only a
checkpoint is left out where a newer one waits.

A logged model is finished here too, behind its files: ready where all are there, failed where one was set aside.
"""

import contextlib
import os
import posixpath
import shutil
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path

import requests
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.credentials import get_default_host_creds

from trainer.errors import UserError
from trainer.tracking import promises, runs, server, spool
from trainer.tracking.answers import in_one_line, is_final
from trainer.tracking.job import Job
from trainer.tracking.outage import ARTIFACTS, Outage
from trainer.tracking.promises import Promises
from trainer.tracking.spool import Line, SpoolReader
from trainer.whole_file import write_whole

INTERVAL_SECONDS = 1.0
TRIES = 5
SERVER_SECONDS = 5.0
PROBE = ".store-probe"
"""The small file that a store is given to see whether it is the store or one file that is at fault."""
FINAL_STATUSES = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.GONE,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.REQUEST_URI_TOO_LONG,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)


class Uploads:
    """Sends files from a thread of its own.

    Args:
        job: Whose spool and outbox.
        server_uri: http(s) URL of the MLflow server.
        say: Called with one line for the user when a file is set aside, or when the store takes none.
    """

    def __init__(self, job: Job, server_uri: str, say: Callable[[str], None]) -> None:
        self._job = job
        self._server_uri = server_uri
        self._say = say
        self._reader = SpoolReader(job.spool, ".uploads")
        self._promises = Promises(job)
        self._store = RestStore(partial(get_default_host_creds, server_uri))
        self._repositories: dict[str, ArtifactRepository] = {}
        self._incomplete = {record.get("to", "") for record in spool.records(job.refused) if "artifact" in record}
        """Places of which a file was set aside."""
        self._outage = Outage(job, ARTIFACTS)
        self._tries = 0
        self._said = ""
        self._all_sent = False
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="uploads", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """The job has ended: go on until all is sent, then stop."""
        self._closing.set()
        if not self._thread.is_alive():
            self._thread.start()

    def done(self, within: float) -> bool:
        """After `finish`: whether all is sent, or set aside; waits for it up to `within` seconds."""
        self._thread.join(within)
        return self._all_sent

    def abandon(self) -> None:
        """Try nothing more; what waits stays in the outbox."""
        self._abandoned.set()

    def _loop(self) -> None:
        while not self._abandoned.is_set():
            closing = self._closing.is_set()
            try:
                sent = self._send_pending()
            except Exception as error:  # the state folder's disk, say; whatever it is, a later try may do better
                sent = False
                self._say_once(f"files wait in {self._job.outbox}: {error}")
            if sent and closing:
                self._all_sent = True
                return
            if sent:
                self._closing.wait(INTERVAL_SECONDS)
            else:
                self._abandoned.wait(INTERVAL_SECONDS * 2 ** max(0, self._tries - 1))

    def _send_pending(self) -> bool:
        """Send every file that waits; False if one is to be tried again."""
        while lines := self._reader.read(most=1000):
            newest = {_target(line.record): line for line in lines if line.record and line.record.get("replaces")}
            for line in lines:
                if line.record is None or not spool.is_of_files(line.record):
                    continue
                if line.record.get("replaces") and newest[_target(line.record)] is not line:
                    shutil.rmtree(self._job.outbox / line.record["copy"], ignore_errors=True)
                    continue
                if not self._run_is_there():
                    return False
                deliver = self._finalize if "finalize" in line.record else self._send
                if self._abandoned.is_set() or not deliver(line):
                    return False
                self._reader.delivered(line.end)
            self._reader.delivered(lines[-1].end)
        return True

    def _run_is_there(self) -> bool:
        """Whether the server knows the run; where not, the delivery of values says so, and another would take files."""
        run = self._job.run_record()
        assert run is not None, "files are logged to a run"
        if run.promised:
            return True  # see _uri
        try:
            there = runs.by_id(self._store, run.run_id)
        except MlflowException:
            return False
        return there is not None and not runs.is_deleted(there)

    def _send(self, line: Line) -> bool:
        assert line.record is not None
        path = line.record["artifact"]
        folder = self._job.outbox / line.record["copy"]
        if not (folder / path).exists():  # the last upload before a crash
            return True
        uri = self._uri(line)
        if uri is None:  # the delivery of values has it made
            return False
        if uri.startswith(promises.REFUSED):
            self._set_aside(line, UserError("the server has refused the model that it is of"))
            return True
        if self._outage.lasts and not self._store_takes_files(line):  # not tried with a file that may be large
            self._tries = min(self._tries + 1, TRIES)
            return False
        self._put_real_names_in(folder / path)
        try:
            self._to_store(line).log_artifact(str(folder / path), posixpath.dirname(path) or None)
        except Exception as error:  # each kind of store has errors of its own
            return self._failed(line, error)
        self._tries = 0
        self._said = ""
        if (seconds := self._outage.end()) is not None:
            self._say(f"the artifact store takes files again after {seconds:.0f} s")
        _remove(folder / path, folder)
        return True

    def _put_real_names_in(self, file: Path) -> None:
        """A logged model's description names the model, its run and its place."""
        if file.name == MLMODEL_FILE_NAME:
            text = file.read_text()
            if (real := self._promises.in_text(text)) != text:
                write_whole(file, real)

    def _finalize(self, line: Line) -> bool:
        """Say how a logged model ended, all its files being there or set aside."""
        assert line.record is not None
        record = self._promises.in_record(line.record)
        if record["to"].startswith(promises.URI):
            return False
        if record["to"].startswith(promises.REFUSED):  # that has been said
            return True
        incomplete = {record["to"], line.record["to"]} & self._incomplete
        status = LoggedModelStatus.FAILED if incomplete else LoggedModelStatus(record["status"])
        try:
            self._store.finalize_logged_model(record["finalize"], status)
        except MlflowException as error:
            if not is_final(error):
                return False  # the delivery of values says so
            spool.set_aside(self._job.refused, [line.raw])
            self._say(f"logged model {record['finalize']} is not {status}: the server {in_one_line(error)}")
        return True

    def _failed(self, line: Line, error: Exception) -> bool:
        """Decide on a file that was not taken: False to try it again, True where it is set aside."""
        if not _final(error):
            if not server.is_there(self._server_uri, SERVER_SECONDS):
                return False  # the delivery of values says so
            self._tries = min(self._tries + 1, TRIES)
            if not self._store_takes_files(line):
                self._outage.begin()
                self._say_once(f"the artifact store takes no files ({_reason(error)}); they wait on disk")
                return False
            if self._tries < TRIES:
                return False
        self._tries = 0
        self._set_aside(line, error)
        return True

    def _set_aside(self, line: Line, error: Exception) -> None:
        assert line.record is not None
        folder = self._job.refused_files / line.record["copy"]
        folder.parent.mkdir(exist_ok=True)
        spool.set_aside(self._job.refused, [line.raw])
        os.rename(self._job.outbox / line.record["copy"], folder)
        self._incomplete.add(line.record.get("to", ""))
        self._say(f"artifact {line.record['artifact']} is set aside in {folder}: {_reason(error)}")

    def _store_takes_files(self, line: Line) -> bool:
        """Whether it takes another, small one: it may list what it has and be full, or read-only."""
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder) / PROBE
            probe.write_text("written to see whether the artifact store takes files\n")
            try:
                self._to_store(line).log_artifact(str(probe))
            except Exception:  # each kind of store has errors of its own
                return False
        with contextlib.suppress(Exception):  # a store that deletes nothing keeps it
            self._to_store(line).delete_artifacts(PROBE)
        return True

    def _uri(self, line: Line) -> str | None:
        """Of the artifacts that a file belongs to; None while the server has not made what they are of."""
        assert line.record is not None
        run = self._job.run_record()
        assert run is not None, "files are logged to a run"
        uri = self._promises.in_text(line.record.get("to") or run.artifact_uri)
        return None if uri.startswith(promises.URI) else uri

    def _to_store(self, line: Line) -> ArtifactRepository:
        uri = self._uri(line)
        assert uri is not None, "asked for before"
        if uri not in self._repositories:
            self._repositories[uri] = get_artifact_repository(uri, tracking_uri=self._server_uri)
        return self._repositories[uri]

    def _say_once(self, line: str) -> None:
        if line != self._said:
            self._said = line
            self._say(line)


def _target(record: spool.Record) -> tuple[str, str]:
    """Where a file goes."""
    return record.get("to", ""), record["artifact"]


def _final(error: Exception) -> bool:
    """Whether no later try can change it. Not so 401 and 403, which an administrator can, 404 of a proxy, 408, 429."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code in FINAL_STATUSES
    return isinstance(error, MlflowException) and error.get_http_status_code() == HTTPStatus.BAD_REQUEST


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _remove(copy: Path, folder: Path) -> None:
    copy.unlink()
    for parent in copy.parents:
        parent.rmdir()
        if parent == folder:
            return
