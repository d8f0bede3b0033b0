"""A user's own project: examples/minimal as it stands, from a folder that is not its own."""

import subprocess
from pathlib import Path

import pytest

from harness import PROJECT, TRAINER, Lab
from trainer import workspace
from trainer.provenance.repository import workspace_tags

EXAMPLE = PROJECT.parent / "examples" / "minimal" / "circle.yaml"


@pytest.fixture(scope="module")
def minimal(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The example on two ranks, started in a folder that has nothing to do with it."""
    words = ("fit", "--config", str(EXAMPLE), "--devices", "2", "--experiment", "minimal")
    call = {"cwd": tmp_path_factory.mktemp("elsewhere"), "env": lab.environment}
    return subprocess.run([TRAINER, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **call)


def test_the_example_is_trained_tested_and_logged(lab: Lab, minimal: subprocess.CompletedProcess[str]) -> None:
    """Guards: a module beside the configuration that is not found; a template that does not work. (Tried: without
    `make_importable`.)"""
    assert minimal.returncode == 0, minimal.stdout
    run = lab.only_run("minimal")
    assert run.info.status == "FINISHED" and run.data.metrics["test_acc"] > 0.9
    for key in ("train_loss", "train_acc", "val_loss", "val_acc"):
        assert [step for step, _ in lab.points(run, key)] == list(range(10)), key
    assert run.data.params["model.class_path"] == "net.Net"
    (model,) = lab.client.search_logged_models([run.info.experiment_id])
    assert model.status == "READY" and model.source_run_id == run.info.run_id


def test_the_commit_of_the_users_code_is_recorded(lab: Lab, minimal: subprocess.CompletedProcess[str]) -> None:
    """Guards: a run of which only the lab's own commit is known, or that of the folder where it was typed. (Tried.)"""
    tags = lab.only_run("minimal").data.tags
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=EXAMPLE.parent, capture_output=True, text=True, check=True)
    assert tags["workspace.git.commit"] == head.stdout.strip() and tags["workspace.git.dirty"] in ("true", "false")
    assert "git.missing" in tags, "nothing is known of the folder where it was typed"


def test_a_workspace_is_recorded_only_where_it_is_another_repository(tmp_path: Path) -> None:
    """Guards: the same commit twice; a workspace without a commit that looks like none."""
    assert workspace_tags(EXAMPLE.parent, PROJECT) == {}
    (missing,) = workspace_tags(tmp_path, PROJECT)
    assert missing == "workspace.git.missing"
    (missing,) = workspace_tags(tmp_path / "nowhere", PROJECT)
    assert missing == "workspace.git.missing"


def test_the_workspace_is_what_the_environment_or_the_configuration_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: an order in which a module of the same name hides the one that is meant."""
    words = ["--config", "one/a.yaml", "--model.width=3", "--config=two/b.yaml", "-c", "three/c.yaml", "--config"]
    assert workspace.folder([]) is None and workspace.folder(words) == Path("three")
    assert [folder.name for folder in workspace.import_folders(words)] == ["one", "two", "three"]
    monkeypatch.setenv("WORKSPACE", "/workspace")
    assert workspace.folder([]) == Path("/workspace") and workspace.folder(words) == Path("three")
    assert [folder.name for folder in workspace.import_folders(words)] == ["workspace", "one", "two", "three"]
