"""Files that a job logs: to its outbox at once, to a real server in the background, past whatever refuses them."""

import hashlib
import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow.entities import Metric, RunStatus

from harness import Lab, job_with_run, until
from trainer.tracking import outbox, spool, uploads
from trainer.tracking.batches import record_of
from trainer.tracking.delivery import Delivery
from trainer.tracking.job import Job
from trainer.tracking.schemes import JOB_SCHEME

# What a user's script does on global rank 0, with MLflow's fluent API and nothing else. Launch is not there, so that
# nothing is delivered meanwhile.
SCRIPT = """
import sys
from pathlib import Path
import matplotlib.figure
import mlflow

folder = Path(sys.argv[1])
(folder / "tree" / ".hidden" / "deep").mkdir(parents=True)
(folder / "tree" / "top.bin").write_bytes(bytes(range(256)) * 5000)
(folder / "tree" / ".hidden" / "deep" / "leaf.txt").write_text("leaf")
mlflow.set_experiment("artifacts")
with mlflow.start_run() as run:
    mlflow.log_artifact(folder / "tree" / "top.bin", "copies")
    (folder / "tree" / "top.bin").write_bytes(b"written over")
    mlflow.log_artifacts(str(folder / "tree"), "tree")
    mlflow.log_artifacts(str(folder / "tree"))
    mlflow.log_text("first", "texts/note.txt")
    mlflow.log_text("second", "texts/note.txt")
    mlflow.log_dict({"a": 1}, "config.json")
    mlflow.log_figure(matplotlib.figure.Figure(), "figure.png")
    mlflow.log_table({"row": [1]}, "table.json")
    mlflow.log_table({"row": [2]}, "table.json")
    assert [info.path for info in mlflow.artifacts.list_artifacts(run_id=run.info.run_id, artifact_path="texts")] == [
        "texts/note.txt"
    ]
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/texts/note.txt") == "second"
    assert mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/config.json") == {"a": 1}
    try:
        mlflow.log_artifact(folder / "tree" / "top.bin", "../outside")
    except mlflow.MlflowException:
        print("refused at once", flush=True)
"""
FILES = {
    ".hidden/deep/leaf.txt",
    "config.json",
    "copies/top.bin",
    "figure.png",
    "table.json",
    "texts/note.txt",
    "top.bin",
    "tree/.hidden/deep/leaf.txt",
    "tree/top.bin",
}


pytestmark = pytest.mark.usefixtures("own_http_settings")


def put(job: Job, path: str, text: str) -> None:
    file = job.folder / "written"
    file.write_text(text)
    outbox.put(job, job.run_record().run_id, file, path)


def names(lab: Lab, run_id: str, folder: str | None = None) -> set[str]:
    """Every artifact that the server has of a run."""
    found = set()
    for info in lab.client.list_artifacts(run_id, folder):
        found |= names(lab, run_id, info.path) if info.is_dir else {info.path}
    return found


def test_what_a_script_logs_waits_on_disk_and_then_arrives(lab: Lab, tmp_path: Path) -> None:
    """Guards: files sent while training waits; a server that is away costing them; a file as it was later (tried)."""
    job = Job(tmp_path / "job")
    job.folder.mkdir()
    environment = {"MLFLOW_TRACKING_URI": JOB_SCHEME + lab.uri, "TRAINER_JOB_DIR": str(job.folder), "RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0 and "refused at once" in done.stdout, done.stdout
    run_id = job.run_record().run_id
    assert names(lab, run_id) == set(), "nothing is sent before launch sends it"
    assert Delivery(job, lab.uri, print).close(RunStatus.FINISHED, patience=60)
    assert names(lab, run_id) == FILES
    assert not list(job.outbox.iterdir()), "what the server has takes no room twice"
    got = Path(lab.client.download_artifacts(run_id, "copies/top.bin", str(tmp_path))).read_bytes()
    assert hashlib.sha256(got).digest() == hashlib.sha256(bytes(range(256)) * 5000).digest()
    assert Path(lab.client.download_artifacts(run_id, "texts/note.txt", str(tmp_path))).read_text() == "second"
    table = json.loads(Path(lab.client.download_artifacts(run_id, "table.json", str(tmp_path))).read_text())
    assert table["data"] == [[1], [2]]


def test_a_crash_repeats_one_upload_at_most(lab: Lab, tmp_path: Path) -> None:
    """Guards: a launch that died between an upload and its note of it, and can never be closed for it (tried)."""
    job = job_with_run(lab, tmp_path, "uploads")
    put(job, "a.txt", "a")
    assert Delivery(job, lab.uri, print).close(RunStatus.FINISHED, patience=30)
    (tmp_path / "spool.uploads").unlink()
    put(job, "b.txt", "b")
    assert Delivery(job, lab.uri, print).close(RunStatus.FINISHED, patience=30)
    assert names(lab, job.run_record().run_id) == {"a.txt", "b.txt"}


class Fickle(ThreadingHTTPServer):
    """A proxy before the real server that answers some of the artifacts' requests itself."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(("127.0.0.1", 0), FickleHandler)
        self.behind = urlsplit(lab.uri).netloc
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        self.answers: dict[str, int] = {}
        """What of the path makes it answer with which status."""
        self.refused: list[str] = []


class FickleHandler(BaseHTTPRequestHandler):
    server: Fickle

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status = next((code for part, code in self.server.answers.items() if part in self.path), None)
        if status is not None:
            self.server.refused.append(self.path)
            return self.answer(status, b"no")
        behind = http.client.HTTPConnection(self.server.behind)
        behind.request(self.command, self.path, body, {"Content-Type": self.headers.get("Content-Type", "")})
        response = behind.getresponse()
        self.answer(response.status, response.read())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def log_message(self, format: str, *args: object) -> None:
        return None


@pytest.fixture
def fickle(lab: Lab) -> Iterator[Fickle]:
    with Fickle(lab) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy
        proxy.shutdown()


@pytest.mark.fault
def test_a_file_that_is_not_taken_holds_up_nothing(
    lab: Lab, fickle: Fickle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards: one artifact at which the server fails, tried for ever with everything else behind it (tried)."""
    monkeypatch.setattr(uploads, "INTERVAL_SECONDS", 0.2)
    fickle.answers = {"forbidden.txt": 400, "broken.txt": 500}
    job = job_with_run(lab, tmp_path, "uploads")
    run_id = job.run_record().run_id
    said: list[str] = []
    delivery = Delivery(job, fickle.uri, said.append)
    for name in ("broken.txt", "forbidden.txt", "good.txt"):
        put(job, f"sub/{name}", name)
    spool.append(job.spool, record_of(run_id, [Metric("loss", 1.0, 1, 0)], [], []))
    delivery.start()
    until(lambda: "loss" in delivery.latest, seconds=5)
    assert not job.refused.exists(), "the metric did not wait for the file's tries"
    assert delivery.close(RunStatus.FINISHED, patience=60)
    assert names(lab, run_id) == {"sub/good.txt"}, "and not what the store was tried with"
    assert lab.client.get_run(run_id).info.status == "FINISHED"
    assert [path.rsplit("/", 1)[1] for path in fickle.refused] == ["broken.txt"] * uploads.TRIES + ["forbidden.txt"]
    kept = {path.name: path.read_text() for path in (tmp_path / "refused").glob("*/sub/*")}
    assert kept == {"broken.txt": "broken.txt", "forbidden.txt": "forbidden.txt"}
    assert len(said) == 2 and all("is set aside in" in line for line in said), said


@pytest.mark.fault
def test_a_store_that_is_down_is_waited_for_and_the_status_does_not_wait(
    lab: Lab, fickle: Fickle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards: MinIO away for longer than a file's tries, and all files of the job set aside one by one (tried); an
    outage whose length is not on the run, since it was written behind the last delivery of values (tried)."""
    monkeypatch.setattr(uploads, "INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr("trainer.tracking.delivery.UPLOADS_SECONDS", 1.0)
    fickle.answers = {"/mlflow-artifacts/": 500}
    job = job_with_run(lab, tmp_path, "uploads")
    run_id = job.run_record().run_id
    for number in range(3):
        put(job, f"{number}.txt", str(number))
    said: list[str] = []
    assert not Delivery(job, fickle.uri, said.append).close(RunStatus.FAILED, patience=8)
    assert lab.client.get_run(run_id).info.status == "FAILED", "a file that waits must not withhold the truth"
    assert [line for line in said if "takes no files" in line] and not job.refused.exists(), said
    fickle.answers = {}
    assert Delivery(job, fickle.uri, said.append).close(RunStatus.FAILED, patience=30)
    assert names(lab, run_id) == {"0.txt", "1.txt", "2.txt"}
    (outage,) = lab.client.get_metric_history(run_id, "artifact_outage_seconds")
    assert 7 < outage.value < 30, "it lasted through two deliveries"
