"""The trainer in its container: users' own code, ranks, and every way in which a training there can end."""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from compose import NEEDS_ENGINE, QUICK, REPOSITORY, Stack, inspect
from harness import until
from image_folders import write_images

pytestmark = NEEDS_ENGINE

TORCHRUN = ("python3", "-m", "torch.distributed.run", "--standalone", "--log-dir=/tmp/logs")

# Rank 1 takes memory until the kernel ends it; rank 0 waits for it.
TAKES_MEMORY = """
import os, time, torch
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

class Takes(BoringModel):
    def training_step(self, batch, batch_idx):
        taken = []
        while batch_idx == 3 and self.global_rank == 1:
            taken.append(torch.ones(2**24))
            time.sleep(0.05)
        return super().training_step(batch, batch_idx)

Trainer(max_epochs=1, enable_progress_bar=False).fit(Takes())
"""


def readable(folder: Path) -> Path:
    """The same folder, as the container's user can read it."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def inside_trainer(stack: Stack, *command: str, mounts: tuple[str, ...] = ()) -> str:
    """Run a command in a trainer container; its output."""
    volumes = [word for mount in mounts for word in ("--volume", mount)]
    return stack.must("run", "--rm", "-T", "--no-deps", *volumes, "--entrypoint", command[0], "trainer", *command[1:])


def test_the_example_of_an_own_project_trains(stack: Stack, trained: str) -> None:
    """Guards: a workspace that is not mounted, whose modules cannot be imported, or that the README gets wrong."""
    stack.must("run", "--rm", "-T", "trainer", "fit", "--config", "/workspace/circle.yaml", "--experiment", "own")
    (run,) = stack.runs("own")
    assert run.info.status == "FINISHED" and run.data.metrics["test_acc"] > 0.9
    assert run.data.params["model.class_path"] == "net.Net"


def test_the_commit_of_the_users_code_is_recorded(stack: Stack, trained: str, tmp_path: Path) -> None:
    """Guards: git that does not trust the mounted workspace, so that its commit is missing without a word."""
    mine = shutil.copytree(REPOSITORY / "examples" / "minimal", tmp_path / "mine")
    author = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    for words in (("init", "--quiet"), ("add", "."), (*author, "commit", "--quiet", "--message", "mine")):
        subprocess.run(["git", *words], cwd=mine, check=True)
    code = """
from pathlib import Path
from trainer.provenance.repository import workspace_tags
print(workspace_tags(Path("/workspace"), Path("/repo")))
"""
    done = stack.run(
        "run", "--rm", "-T", "--no-deps", "--entrypoint", "python3", "trainer", "-c", code, WORKSPACE=str(mine)
    )
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=mine, capture_output=True, text=True, check=True)
    assert f"'workspace.git.commit': '{head.stdout.strip()}', 'workspace.git.dirty': 'false'" in done.stdout


def test_fact_A_replicas_are_equal_in_the_container(stack: Stack, trained: str) -> None:
    """Guards: replicas that diverge with the container's Python and libraries."""
    script = "/repo/trainer/tests/finetuning_ranks.py"
    ranks = inside_trainer(
        stack, "sh", "-c", f"{' '.join(TORCHRUN)} --nproc-per-node=2 {script} /tmp True >&2; cat /tmp/rank?.json"
    )
    first, second = (json.loads(line) for line in ranks[ranks.index("[{") :].replace("][", "]\n[").splitlines())
    assert first == second and [entry["trainable"] for entry in first] == [False, True, True, True, True]


def test_fact_N_metrics_are_exact_in_the_container(stack: Stack, trained: str, tmp_path: Path) -> None:
    """Guards: metrics that depend on the number of processes."""
    script = "/repo/trainer/tests/vision/exact_ranks.py"
    images = readable(write_images(tmp_path / "images"))
    found = []
    for world_size in (1, 2, 3):
        command = f"{' '.join(TORCHRUN)} --nproc-per-node={world_size} {script} /images /tmp/out {12 // world_size} >&2"
        output = inside_trainer(stack, "sh", "-c", f"{command}; cat /tmp/out", mounts=(f"{images}:/images:ro",))
        found.append(json.loads(output[output.index("{") :]))
    for name in ("val_acc", "test_acc"):
        assert found[0][name] == found[1][name] == found[2][name]
    for name in ("train_loss", "val_loss", "test_loss"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-5)
        assert found[2][name] == pytest.approx(found[0][name], rel=1e-5)


def test_two_ranks_in_the_container_are_one_run(stack: Stack, trained: str) -> None:
    """Guards: DDP that only works outside of the container, a run per rank, and arguments that are not passed on."""
    stack.must("run", "--rm", "-T", "trainer", *QUICK, "--experiment", "two", DEVICES="2")
    (run,) = stack.runs("two")
    assert run.info.status == "FINISHED" and run.data.params["trainer.devices"] == "2"


def test_a_script_runs_in_the_container(stack: Stack, trained: str) -> None:
    """Guards: a script that wants to write beside itself, in a folder that is mounted read-only."""
    words = ("run", "--devices", "2", "no_mlflow.py", "--lr", "0.3")
    stack.must("run", "--rm", "-T", "--workdir", "/workspace", "trainer", *words, WORKSPACE="./trainer/tests/scripts")
    (run,) = stack.runs("no_mlflow")
    assert run.info.status == "FINISHED" and run.data.params["model.lr"] == "0.3"


def test_the_trainers_exit_code_comes_through(stack: Stack, trained: str) -> None:
    """Guards: a failed training that a script takes for a good one."""
    done = stack.run("run", "--rm", "-T", "trainer", "fit", "--config", "configs/none.yaml")
    assert done.returncode == 2 and "configs/none.yaml" in done.stdout and "Traceback" not in done.stdout


def test_no_gpu_is_one_line_that_names_the_way_out(stack: Stack, trained: str) -> None:
    """Guards: a training on the CPU where a GPU was asked for; inside the container and by Docker itself."""
    done = stack.run("run", "--rm", "-T", "-e", "ACCELERATOR=nvidia", "trainer", *QUICK)
    assert done.returncode == 2, done.stdout
    assert "trainer: error: no NVIDIA GPU" in done.stdout and "ACCELERATOR=cpu" in done.stdout
    if "nvidia" not in subprocess.run(["docker", "info"], capture_output=True, text=True).stdout:
        done = stack.run("run", "--rm", "-T", "trainer", *QUICK, ACCELERATOR="nvidia")
        assert done.returncode != 0 and "could not select device driver" in done.stdout, "what the README quotes"


@pytest.mark.fault
def test_docker_stop_makes_the_run_killed(stack: Stack, trained: str) -> None:
    """Guards: FINISHED for a job that was stopped, exit code 0 or 137, a stop that takes the whole grace period."""
    words = ("--experiment", "stopped", "--trainer.max_epochs", "500", "--trainer.callbacks=[]")
    process = stack.start("run", "-T", "--name", f"{stack.project}-stopped", "trainer", *QUICK, *words, DEVICES="2")
    try:
        until(lambda: any("val_loss" in run.data.metrics for run in stack.runs("stopped")), seconds=180)
        subprocess.run(["docker", "stop", f"{stack.project}-stopped"], check=True, capture_output=True)
        process.communicate(timeout=60)
        assert inspect(f"{stack.project}-stopped")["State"]["ExitCode"] == 128 + signal.SIGTERM
        (run,) = stack.runs("stopped")
        assert run.info.status == "KILLED"
    finally:
        process.kill()
        subprocess.run(["docker", "rm", "--force", f"{stack.project}-stopped"], capture_output=True)


@pytest.mark.fault
def test_a_rank_without_memory_fails_the_job(stack: Stack, trained: str, tmp_path: Path) -> None:
    """Guards: the kernel ends one rank for its memory and the others wait for it; a run that says nothing of it."""
    (tmp_path / "takes_memory.py").write_text(TAKES_MEMORY)
    limit = tmp_path / "limit.yml"
    limit.write_text("services: {trainer: {mem_limit: 3g, memswap_limit: 3g}}\n")
    files = ("--file", str(REPOSITORY / "docker-compose.yml"), "--file", str(limit))
    words = ("run", "--rm", "-T", "trainer", "run", "--devices", "2", "/workspace/takes_memory.py")
    done = stack.run(
        "--project-directory", str(REPOSITORY), *files, *words, WORKSPACE=str(readable(tmp_path)), timeout=300
    )
    assert done.returncode == 1, done.stdout
    assert "rank 1 was ended by SIGKILL; SIGKILL often means out of memory" in done.stdout
    (run,) = stack.runs("takes_memory")
    assert run.info.status == "FAILED"
