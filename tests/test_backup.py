"""Backup, restore and upgrade of the stack in containers: what a lab holds before and after, through MLflow's own API.

The backup is taken while two jobs run. One other stack with volumes, credentials and ports of its own takes it up, in
the order of this file: cut off three times, then whole, then upgraded and carried to another major of PostgreSQL.
"""

import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from contents import Contents, assert_equal, contents, counted, tables, without
from mlflow.entities import Metric

from compose import NEEDS_ENGINE, QUICK, REPOSITORY, Stack
from harness import free_port, until

pytestmark = NEEDS_ENGINE

ODD = 'Größe / "zwei" & 100 %'


def make(stack: Stack, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `make …` on a stack, as its user does."""
    return subprocess.run(
        ["make", "--silent", *words],
        cwd=REPOSITORY,
        env={**stack.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line in which a command that failed says why."""
    assert done.returncode != 0, done.stdout
    (line,) = (line for line in done.stdout.splitlines() if ": error: " in line)
    return line


# --- A lab with everything in it, and jobs that go on ---------------------------------------------


def write_odd_things(stack: Stack, folder: Path) -> None:
    """What a digits run has not: odd names and values, a large and an empty artifact, registered and deleted things."""
    client = stack.client
    experiment = client.create_experiment(f"odd: {ODD}", tags={"a tag/of-it": ODD})
    run = client.create_run(experiment, run_name=ODD).info.run_id
    client.log_param(run, "text", "two\nlines\tand \\ ' ü 漢字")
    client.set_tag(run, "mlflow.note.content", ODD)
    steps = [Metric("loss", random.random() ** 9, 1_700_000_000_000 + step, step) for step in range(2500)]
    for start in range(0, len(steps), 1000):
        client.log_batch(run, metrics=steps[start : start + 1000])
    for value in (float("nan"), float("inf"), float("-inf"), -0.0, 5e-324):
        client.log_metric(run, "edge", value)

    (folder / ODD.replace("/", "|")).mkdir()
    (folder / ODD.replace("/", "|") / "ü b.txt").write_text("ü")
    (folder / ("long " + "l" * 150)).write_text("a name beyond the 100 bytes of an old tar's header")
    (folder / "empty").write_bytes(b"")
    (folder / "packed.json.gz").write_bytes(os.urandom(1000))
    with (folder / "large.bin").open("wb") as file:
        for _ in range(100):
            file.write(os.urandom(2**20))
    client.log_artifacts(run, str(folder), "sub folder/ß")
    client.set_terminated(run, "KILLED")
    client.delete_run(client.create_run(experiment, run_name="deleted").info.run_id)
    client.delete_experiment(client.create_experiment("deleted experiment"))

    (digits,) = stack.runs("digits")
    (model,) = client.search_logged_models([digits.info.experiment_id])
    client.create_registered_model("Größe 1", tags={"a": "b"}, description=ODD)
    for _ in range(2):
        client.create_model_version(
            "Größe 1", f"models:/{model.model_id}", run_id=digits.info.run_id, model_id=model.model_id
        )
    client.set_registered_model_alias("Größe 1", "champion", "1")
    client.set_model_version_tag("Größe 1", "2", "checked", "yes")


class GoingOn(threading.Thread):
    """A job that writes without a pause: a point, an artifact, then a tag that names the artifact and its content."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        super().__init__()
        self._client = stack.client
        self._folder = folder
        self._over = threading.Event()
        self.run_id = self._client.create_run(self._client.create_experiment("going on")).info.run_id
        self.written = 0

    def run(self) -> None:
        while not self._over.is_set():
            name = f"part{self.written:05}"
            file = self._folder / name
            file.write_bytes(os.urandom(random.randrange(200_000)))
            self._client.log_metric(self.run_id, "value", random.random(), step=self.written)
            self._client.log_artifact(self.run_id, str(file))
            self._client.set_tag(self.run_id, name, hashlib.sha256(file.read_bytes()).hexdigest())
            file.unlink()
            self.written += 1

    def end(self) -> None:
        self._over.set()
        self.join()


@dataclasses.dataclass
class Backup:
    """A backup, and what was true around it.

    Args:
        folder: The backup.
        printed: What `make backup` printed.
        before: What the lab held before the two jobs began.
        final: What it held when they had ended.
        going_on: The runs of the two jobs.
    """

    folder: Path
    printed: str
    before: Contents
    final: Contents
    going_on: set[str]


@pytest.fixture(scope="module")
def backup(stack: Stack, trained: str, tmp_path_factory: pytest.TempPathFactory) -> Backup:
    """A backup of a lab with everything in it, taken while a real training and a job that writes all the time run."""
    write_odd_things(stack, tmp_path_factory.mktemp("odd"))
    stack.client.create_experiment("meanwhile")
    job = GoingOn(stack, tmp_path_factory.mktemp("parts"))
    before = without({job.run_id}, contents(stack))
    name = f"{stack.project}-meanwhile"
    training = stack.start(
        *("run", "--rm", "-T", "--name", name, "trainer", *QUICK, "--experiment", "meanwhile"),
        *("--trainer.max_epochs=1000", "--trainer.callbacks=null"),
    )
    job.start()
    try:
        until(lambda: any("train_loss" in run.data.metrics for run in stack.runs("meanwhile")), 180)
        place = tmp_path_factory.mktemp("backups")
        done = make(stack, "backup", f"BACKUPS={place}")
        assert done.returncode == 0, done.stdout
        written = job.written
        until(lambda: job.written > written + 5)
    finally:
        job.end()
        subprocess.run(["docker", "stop", name], check=True, capture_output=True)
        training.communicate(timeout=60)
    (run,) = stack.runs("meanwhile")
    assert run.info.status == "KILLED"
    (folder,) = place.iterdir()
    return Backup(folder, done.stdout, before, contents(stack), {job.run_id, run.info.run_id})


@pytest.fixture(scope="module")
def other() -> Iterator[Stack]:
    """The fresh machine: no volume, no container and no image of the stack is there."""
    stack = Stack(f"labtestother{free_port()}", free_port(), free_port())
    try:
        yield stack
    finally:
        stack.must("down", "--volumes", "--remove-orphans", "--timeout", "5")
        # By label: an upgrade leaves the images that it replaces without a name.
        listed = ["docker", "image", "ls", "--quiet", "--filter", f"label=com.docker.compose.project={stack.project}"]
        images = set(subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split())
        subprocess.run(["docker", "image", "rm", "--force", *images], check=False)


def traces(stack: Stack) -> str:
    """What Docker has of a project."""
    label = f"label=com.docker.compose.project={stack.project}"
    asked = (("ps", "--all", "--quiet"), ("volume", "ls", "--quiet"), ("network", "ls", "--quiet"))
    return "".join(
        subprocess.run(["docker", *words, "--filter", label], capture_output=True, text=True, check=True).stdout
        for words in asked
    )


# --- The backup -----------------------------------------------------------------------------------


def test_a_backup_says_what_it_holds_and_is_its_owners_alone(stack: Stack, backup: Backup) -> None:
    """Guards: a dump that others on the machine, or the trainer's container, can read; a manifest that is not true."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d{6}Z", backup.folder.name)
    assert backup.folder.stat().st_mode & 0o777 == 0o700
    names = {file.name: file.stat().st_mode & 0o777 for file in backup.folder.iterdir()}
    assert names == dict.fromkeys(
        ("SHA256SUMS", "artifacts.tar", "contents.txt", "database.dump", "manifest.json"), 0o600
    )
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=backup.folder, check=True)
    ignored = subprocess.run(["git", "check-ignore", "--quiet", "backups/x"], cwd=REPOSITORY)
    assert ignored.returncode == 0, "the default place is ignored by git"

    manifest = json.loads((backup.folder / "manifest.json").read_text())
    assert manifest["mlflow"] == mlflow.__version__ and manifest["postgresql"].startswith("18.")
    counts = manifest["counts"]
    assert counts["experiments"] == len(backup.final["experiments"]) and counts["runs"] == len(backup.final["runs"])
    assert counts["registered_models"] == 1
    assert (
        counted("metrics", backup.before["metrics"]) < counts["metrics"] < counted("metrics", backup.final["metrics"])
    )
    with tarfile.open(backup.folder / "artifacts.tar") as tar:
        members = tar.getmembers()
    assert counts["artifacts"] == len(members) and counts["artifact_bytes"] == sum(member.size for member in members)
    assert len(backup.printed.splitlines()) == 1 and str(backup.folder) in backup.printed


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, "the disk is full"])
def test_a_backup_that_fails_leaves_nothing(stack: Stack, backup: Backup, tmp_path: Path, how: object) -> None:
    """Guards: half a backup that looks like a whole one; containers left behind."""
    place = tmp_path / "backups"
    place.mkdir()
    if isinstance(how, signal.Signals):
        process = subprocess.Popen(
            [REPOSITORY / "docker" / "backup"],
            env={**stack.environment, "BACKUPS": str(place)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        until(lambda: any(place.glob("*/artifacts.tar")))
        assert [folder.suffix for folder in place.iterdir()] == [".partial"]
        os.killpg(process.pid, how)
        process.communicate(timeout=60)
        assert process.returncode != 0
    else:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=True)
        try:
            line = error_line(make(stack, "backup", f"BACKUPS={place}"))
            assert line.startswith("backup: error: copying the artifacts failed: ") and "no space" in line.lower()
            assert list(place.iterdir()) == []
        finally:
            subprocess.run(["umount", str(place)], check=True)
    assert list(place.iterdir()) == []
    until(lambda: "-run-" not in stack.must("ps", "--all", "--format", "{{.Name}}"), 20)


# --- The restore ----------------------------------------------------------------------------------


def flip(file: Path) -> None:
    with file.open("r+b") as content:
        content.seek(file.stat().st_size // 2)
        byte = content.read(1)
        content.seek(-1, os.SEEK_CUR)
        content.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    "damage, said",
    [
        pytest.param(
            lambda folder: flip(folder / "artifacts.tar"),
            "is damaged: the checksum of artifacts.tar is wrong",
            id="one bit",
        ),
        pytest.param(
            lambda folder: os.truncate(folder / "database.dump", 5000),
            "is damaged: the checksum of database.dump is wrong",
            id="cut off",
        ),
        pytest.param(
            lambda folder: (folder / "artifacts.tar").unlink(),
            "not a whole one: it has no artifacts.tar",
            id="a file missing",
        ),
        pytest.param(
            lambda folder: (folder / "SHA256SUMS").write_text("cut off  artifacts.tar"),
            "lacks artifacts.tar",
            id="a checksum missing",
        ),
        pytest.param(lambda folder: shutil.rmtree(folder), "is no folder", id="no folder"),
    ],
)
def test_a_damaged_backup_is_refused(other: Stack, backup: Backup, tmp_path: Path, damage: Any, said: str) -> None:
    """Guards: a lab that is filled with half of what it had, or touched before that is known."""
    folder = shutil.copytree(backup.folder, tmp_path / "damaged")
    damage(folder)
    assert said in error_line(make(other, "restore", f"FROM={folder}"))
    assert traces(other) == "", "nothing was started or made"


def test_a_restore_from_nothing_says_how(other: Stack) -> None:
    """Guards: a restore of whatever folder is there when none is named."""
    assert "make restore FROM=" in error_line(make(other, "restore"))


@pytest.mark.parametrize(
    "moment, seconds",
    [
        pytest.param("loading the artifacts", 0.5, id="artifacts"),
        pytest.param("loading the database", 0.5, id="database"),
        # The head of the table: everything is loaded, not yet compared.
        pytest.param("backup   restored", 0.0, id="table"),
    ],
)
def test_a_restore_that_is_cut_off_leaves_an_empty_lab(
    other: Stack, backup: Backup, moment: str, seconds: float
) -> None:
    """Guards: a lab that has some of its runs and looks complete. The next test repeats the restore here."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [REPOSITORY / "docker" / "restore", backup.folder],
            env=other.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

        def reached() -> bool:
            output.seek(0)
            return moment in output.read() or process.poll() is not None

        until(reached, 300)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was not over yet"
    other.must("up", "--detach", "--wait", "mlflow")
    held = contents(other)
    assert [experiment["name"] for experiment in held["experiments"].values()] == ["Default"]
    assert not held["runs"] and not held["registered models"]


@pytest.fixture(scope="module")
def restored(other: Stack, backup: Backup) -> Contents:
    """What the other stack holds after a restore, which three that were cut off went before."""
    done = make(other, "restore", f"FROM={backup.folder}")
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert "differs" not in done.stdout and "the lab is up, equal to" in done.stdout
    return contents(other)


def test_a_restored_lab_is_equal(stack: Stack, other: Stack, backup: Backup, restored: Contents) -> None:
    """Guards: a run, a point, a model or a byte that is lost or changed; a restore that needs the old credentials."""
    assert_equal(backup.before, without(backup.going_on, restored))
    assert len(backup.before["runs"]) >= 3 and counted("metrics", backup.before["metrics"]) > 2500
    secret = "cat /run/secrets/secret_key"
    assert stack.inside("minio", secret) != other.inside("minio", secret)


def test_a_restore_that_was_cut_off_at_its_very_end_can_be_repeated(
    other: Stack, backup: Backup, restored: Contents
) -> None:
    """Guards: the advice to delete a lab that is restored, and only wants its MLflow server started."""
    other.must("stop", "mlflow")
    done = make(other, "restore", f"FROM={backup.folder}")
    assert done.returncode == 0 and "holds" in done.stdout and "loading" not in done.stdout, done.stdout
    assert len(other.client.search_experiments()) > 1, "it is up"


def test_a_backup_that_is_interrupted_says_so(other: Stack, restored: Contents, tmp_path: Path) -> None:
    """Guards: Ctrl-C that is blamed on the database, and half a folder left."""
    process = subprocess.Popen(
        [REPOSITORY / "docker" / "backup", tmp_path / "interrupted"],
        env=other.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    until(lambda: (tmp_path / "interrupted.partial").exists())
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and output.splitlines()[-1] == "backup: error: interrupted", output
    assert not list(tmp_path.iterdir())


def test_a_model_of_the_restored_lab_loads(other: Stack, restored: Contents) -> None:
    """Guards: a registered model whose alias leads nowhere."""
    import torch

    mlflow.set_tracking_uri(other.uri)
    assert mlflow.pytorch.load_model("models:/Größe 1@champion")(torch.zeros(3, 3, 16, 16)).shape == (3, 10)


def test_jobs_that_went_on_are_a_consistent_prefix(backup: Backup, restored: Contents) -> None:
    """Guards: a run that names artifacts which are not in the backup, or only in part; points with gaps."""
    for run in backup.going_on:
        info = restored["runs"][run]["info"]
        assert info["status"] == "RUNNING"
        assert restored["runs"][run]["params"].items() <= backup.final["runs"][run]["params"].items()
        histories = restored["metrics"][run]
        assert histories
        for key, history in histories.items():
            assert history == backup.final["metrics"][run][key][: len(history)], key
    artifacts_of = {
        name: sha256 for name, sha256 in restored["artifacts"].items() if any(run in name for run in backup.going_on)
    }
    # The training writes its checkpoints over again and again; those of that moment have to be whole.
    overwritten = {name for name, sha256 in artifacts_of.items() if backup.final["artifacts"][name] != sha256}
    assert all(name.endswith(".ckpt") for name in overwritten)
    with tarfile.open(backup.folder / "artifacts.tar") as tar:
        for name in overwritten:
            with zipfile.ZipFile(tar.extractfile(name)) as checkpoint:
                assert checkpoint.testzip() is None
    named = 0
    for run in backup.going_on:
        for name, sha256 in restored["runs"][run]["tags"].items():
            if name.startswith("part"):
                (path,) = (path for path in artifacts_of if run in path and path.endswith(f"/{name}"))
                assert artifacts_of[path] == sha256
                named += 1
    assert (
        0
        < named
        < sum(name.startswith("part") for run in backup.going_on for name in backup.final["runs"][run]["tags"])
    )


def test_a_lab_with_runs_is_not_replaced(stack: Stack, backup: Backup) -> None:
    """Guards: a restore over the runs that are there, which have gone on since the backup."""
    before = tables(stack)
    done = make(stack, "restore", f"FROM={backup.folder}")
    line = error_line(done)
    assert "has runs already" in line and "docker compose down --volumes" in line
    assert "loading" not in done.stdout and tables(stack) == before


# --- The upgrade ----------------------------------------------------------------------------------

OLDER_SCHEMA = """
import sqlalchemy, start
from alembic import command
from mlflow.store.db import utils
engine = sqlalchemy.create_engine(f"postgresql+psycopg2://mlflow:{start.secret('postgres_password')}@postgres/mlflow")
config = utils._get_alembic_config("")
with engine.begin() as connection:
    config.attributes["connection"] = connection
    command.downgrade(config, "-12")
print("schema", utils._get_schema_version(engine))
"""


def schema(stack: Stack) -> str:
    return stack.inside("postgres", "psql -U mlflow -d mlflow -tAc 'select version_num from alembic_version'").strip()


@pytest.fixture(scope="module")
def upgraded(other: Stack, restored: Contents, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What `make upgrade` printed on a lab whose database an older MLflow has left, and the backup that it took."""
    newest = schema(other)
    other.must("stop", "mlflow")
    done = other.run("run", "--rm", "-T", "--no-deps", "--workdir", "/opt", "mlflow", "python3", "-c", OLDER_SCHEMA)
    older = done.stdout.split()[-1]
    assert schema(other) == older != newest, done.stdout
    place = tmp_path_factory.mktemp("backups")
    done = make(other, "upgrade", f"BACKUPS={place}")
    assert done.returncode == 0, done.stdout
    assert f"schema {older}" in done.stdout and f"schema {newest}" in done.stdout
    assert schema(other) == newest
    (folder,) = place.iterdir()
    assert json.loads((folder / "manifest.json").read_text())["schema"] == older
    return done.stdout, folder


def test_an_upgrade_takes_a_backup_and_moves_the_schema_on(
    other: Stack, restored: Contents, upgraded: tuple[str, Path]
) -> None:
    """Guards: an upgrade without a way back; a schema that stays behind; runs that change on the way."""
    printed, folder = upgraded
    assert folder.name.endswith("Z-before-upgrade") and str(folder) in printed
    assert_equal(restored, contents(other))


def test_an_older_backup_is_restored_into_a_newer_mlflow(
    other: Stack, restored: Contents, upgraded: tuple[str, Path]
) -> None:
    """Guards: tables of the newer MLflow in the way of its own migration; backups that only their own version reads."""
    newest = schema(other)
    other.must("down", "--volumes", "--timeout", "5")
    other.must("up", "--detach", "--wait", "mlflow")  # a user who starts the lab first
    done = make(other, "restore", f"FROM={upgraded[1]}")
    assert done.returncode == 0, done.stdout
    assert schema(other) == newest
    assert_equal(restored, contents(other))


def test_a_lab_that_is_stopped_is_backed_up_and_left_stopped(other: Stack, restored: Contents, tmp_path: Path) -> None:
    """Guards: a nightly backup that fails, or starts everything, because nobody works."""
    other.must("down", "--timeout", "30")
    done = make(other, "backup", f"BACKUPS={tmp_path}")
    assert done.returncode == 0, done.stdout
    assert other.must("ps", "--quiet") == ""
    (folder,) = tmp_path.iterdir()
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert counts["runs"] == len(restored["runs"]) and counts["artifacts"] == len(restored["artifacts"])
    other.must("up", "--detach", "--wait", "mlflow")


def test_an_upgrade_that_fails_says_why_and_how_to_go_back(other: Stack, restored: Contents, tmp_path: Path) -> None:
    """Guards: an upgrade that waits for ever, or leaves its user with a lab that is down and no word."""
    line = error_line(make(other, "upgrade", f"BACKUPS={tmp_path}", ALLOWED_HOSTS="not/a.host"))
    (folder,) = tmp_path.iterdir()
    assert "ALLOWED_HOSTS: 'not/a.host'" in line and f"make restore FROM={folder}" in line
    other.must("up", "--detach", "--wait", "mlflow")
    assert_equal(restored, contents(other))


def test_another_major_version_of_postgresql_is_reached_by_backup_and_restore(
    other: Stack, restored: Contents, tmp_path: Path
) -> None:
    """Guards: a newer server that starts empty beside the data of the old one.

    The way that the error line names is gone, word by word. The newer image is the same server with the next version's
    folder: whether a really newer one takes the dump is not tested here.
    """
    newer = f"{other.project}-postgres:19"  # not :latest, which Compose would look for in a registry
    config = json.loads(other.must("config", "--format", "json"))
    recipe = f"FROM {config['services']['postgres']['image']}\nENV PGDATA=/var/lib/postgresql/19/docker\n"
    subprocess.run(["docker", "build", "--quiet", "--tag", newer, "-"], input=recipe, text=True, check=True)
    try:
        line = error_line(make(other, "upgrade", f"BACKUPS={tmp_path}", POSTGRES_IMAGE=newer))
        assert "PostgreSQL 19 cannot read the data of 18" in line
        assert_equal(restored, contents(other))

        other.must("down", "--timeout", "30")
        refused = error_line(make(other, "backup", f"BACKUPS={tmp_path}", POSTGRES_IMAGE=newer))
        assert "put the image of 18 back into .env" in refused

        up = other.run("up", "--detach", "mlflow", POSTGRES_IMAGE=newer)
        assert up.returncode != 0 and "secrets" in up.stdout, up.stdout
        assert "holds data of PostgreSQL 18, POSTGRES_IMAGE is 19" in other.must("logs", "secrets")

        for command in line.partition("while no job runs: ")[2].split("; "):
            environment = {**other.environment, "POSTGRES_IMAGE": newer}
            subprocess.run(command.split(), cwd=REPOSITORY, env=environment, check=True, capture_output=True)
        assert other.inside("postgres", "echo $PGDATA").strip().endswith("/19/docker")
        assert_equal(restored, contents(other))
    finally:
        other.must("down", "--volumes", "--timeout", "5")
        subprocess.run(["docker", "image", "rm", newer], check=False)
