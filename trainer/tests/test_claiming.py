"""Which job a command goes on with, decided from folders and a real server, without a training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness import Lab, left_job
from trainer import workspace
from trainer.errors import UserError
from trainer.launch.resume import Wanted, claim_cut_off
from trainer.tracking.job import EndRecord, Job, RunRecord

ARGUMENTS = ["fit", "--config", "a.yaml"]


@pytest.fixture
def own(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    own = Lab(tmp_path / "own", lab.uri)
    monkeypatch.setenv("LAB_DIR", str(own.folder))
    return own


def cut_off(lab: Lab, name: str, sources: tuple[str, ...] = ("/a.yaml",), number: int = 0) -> Job:
    job = left_job(lab, name, number)
    job.write_arguments(ARGUMENTS)
    job.write_sources(list(sources))
    return job


def claimed(
    lab: Lab, name: str, said: list[str], mode: str = "auto", offline: bool = False, **other: object
) -> Path | None:
    job = claim_cut_off(
        Wanted(name, name, lab.uri, ["/a.yaml"], ARGUMENTS)._replace(**other), mode, offline, said.append
    )
    if job is None:
        return None
    job.release()
    return job.folder


def test_a_job_is_known_by_more_than_its_name(own: Lab) -> None:
    """Guards: a training that goes on with another project's checkpoint, since both have a `train.yaml` (tried)."""
    said: list[str] = []
    job = cut_off(own, "known")
    other = cut_off(own, "known", ("/elsewhere/a.yaml",), number=1)
    assert claimed(own, "known", said) == job.folder
    assert claimed(own, "known", said, sources=["/elsewhere/a.yaml"]) == other.folder
    assert claimed(own, "known", said, sources=["/third/a.yaml"]) is None
    assert claimed(own, "known", said, experiment="of-its-own") is None
    died_asking = cut_off(own, "known", number=2)
    (died_asking.folder / "run.json").unlink()
    died_asking.write_asking("0", own.uri)
    damaged = cut_off(own, "known", ("/elsewhere/a.yaml",), number=3)
    (damaged.folder / "run.json").write_text("")
    assert claimed(own, "known", said) == job.folder, "newer ones with nothing to go on with, or of another project"
    (job.folder / "sources.json").unlink()
    assert claimed(own, "known", said) == job.folder, "of an earlier version"
    assert said == []


def test_a_job_is_told_apart_by_the_folder_that_a_container_sees_as_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards: /workspace/circle.yaml of the example and of the user's copy, taken for one job (tried)."""
    words = ["--config", str(tmp_path / "circle.yaml")]
    monkeypatch.setenv("WORKSPACE", str(tmp_path))
    monkeypatch.setenv("WORKSPACE_ON_HOST", "./examples/minimal")
    example = workspace.sources(words)
    monkeypatch.setenv("WORKSPACE_ON_HOST", "/home/me/circle")
    assert workspace.sources(words) != example
    outside = ["--config", "/repo/digits.yaml"]
    assert workspace.sources(outside) == ["/repo/digits.yaml"]


def test_a_server_is_known_by_the_run_that_it_has(own: Lab) -> None:
    """Guards: a start from nothing without a word since the server's URL is spelled otherwise; or since another server
    has its port (tried)."""
    said: list[str] = []
    job = cut_off(own, "spelled")
    record = job.run_record()
    job.write_run_record(replace(record, server="http://localhost:1"))
    assert claimed(own, "spelled", said) == job.folder and job.run_record().server == own.uri
    job.write_run_record(replace(record, run_id="e" * 32, server="http://localhost:1"))
    assert claimed(own, "spelled", said) is None
    assert said == [f"{job.run_name} was cut off too, but with http://localhost:1: a new run starts on {own.uri}"]
    job.write_run_record(replace(record, run_id="e" * 32))
    with pytest.raises(UserError, match=f"does not know the run of {job.run_name}.*--new"):
        claimed(own, "spelled", said)


def test_a_run_that_was_deleted_is_left(own: Lab) -> None:
    """Guards: a training whose points go to a run that nobody sees."""
    said: list[str] = []
    job = cut_off(own, "deleted")
    own.client.delete_run(job.run_record().run_id)
    assert claimed(own, "deleted", said) is None and "was deleted on the server, so a new one starts" in said[0]


ENDS: list[tuple[str, Callable[[Job], None], dict[str, object], bool]] = [
    ("launch died in the training", lambda job: None, {}, True),
    ("launch died behind the training", lambda job: job.write_done(0, 1), {}, True),
    ("another command than that", lambda job: job.write_done(0, 1), {"arguments": [*ARGUMENTS, "--lr=1"]}, False),
    ("no server to deliver that to", lambda job: job.write_done(0, 1), {"offline": True}, False),
    ("ended, delivered", lambda job: _end(job, "FINISHED", 0, delivered=True), {}, False),
    ("ended offline, its user was told 0", lambda job: _end(job, "FINISHED", 0), {}, False),
    ("ended, its user was told 1: not delivered", lambda job: _end(job, "FINISHED", 1), {}, True),
    ("that, and another command", lambda job: _end(job, "FINISHED", 1), {"arguments": ["fit"]}, False),
    ("killed, delivered", lambda job: _end(job, "KILLED", 143, delivered=True), {}, True),
    ("failed, and other settings", lambda job: _end(job, "FAILED", 1), {"arguments": [*ARGUMENTS, "--lr=1"]}, True),
    ("a user's mistake, before any epoch", lambda job: _end(job, "FAILED", 2), {}, False),
]


@pytest.mark.parametrize(("end", "other", "goes_on"), [case[1:] for case in ENDS], ids=[case[0] for case in ENDS])
def test_a_job_that_had_ended_is_over(own: Lab, end: Callable[[Job], None], other: dict, goes_on: bool) -> None:
    """Guards: a command that trains nothing since an earlier one is still to be delivered; one that trains again what
    was trained already; a job that cannot go on (tried)."""
    said: list[str] = []
    job = cut_off(own, "ended")
    end(job)
    assert (claimed(own, "ended", said, **other) == job.folder) == goes_on


def _end(job: Job, status: str, exit_code: int, delivered: bool = False) -> None:
    job.write_end_record(EndRecord(status, exit_code, 1, {}, delivered))


def test_a_job_that_runs_is_named(own: Lab) -> None:
    """Guards: two trainings at once without a word; --resume must that says that there is none."""
    said: list[str] = []
    job = cut_off(own, "runs")
    holder = Job(job.folder)
    assert holder.claim() and claimed(own, "runs", said) is None
    assert said == [f"{job.run_name} is running in another process; this starts one more run"]
    with pytest.raises(UserError, match="another process has it in hand"):
        claimed(own, "runs", said, mode="must")


def test_a_run_without_a_server_is_gone_on_with(own: Lab) -> None:
    """Guards: a promised run that is asked for on a server which cannot know it."""
    said: list[str] = []
    job = cut_off(own, "promised")
    record = job.run_record()
    promised = RunRecord("a" * 32, "promised:promised", "promised", "x", "promised:/x", 1, "me", own.uri, promised=True)
    job.write_run_record(promised)
    assert claimed(own, "promised", said, offline=True) == job.folder
    job.write_run_record(replace(promised, server="http://elsewhere.example.org"))
    assert claimed(own, "promised", said) is None and "but with http://elsewhere.example.org" in said[0]
    assert record.server == own.uri
