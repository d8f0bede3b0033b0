"""The git commit that a job was started from, under the tag names that MLflow's UI knows."""

import subprocess
from pathlib import Path

GIT_SECONDS = 30.0
"""On a slow or hanging network file system a job must not wait for its commit."""


def repository_tags(folder: Path) -> dict[str, str]:
    """Commit, branch and whether tracked or new files differ from the commit.

    Args:
        folder: Anywhere inside the repository.

    Returns:
        `mlflow.source.git.*` and `git.dirty`; where there is no repository, `git.missing` with git's reason, since
        a run without its commit must not look like one that nobody asked.
    """
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
        changes = _git(folder, "status", "--porcelain")
    except OSError as error:
        return {"git.missing": "git is not installed" if folder.is_dir() else f"{folder}: {error.strerror}"}
    except subprocess.TimeoutExpired:
        return {"git.missing": f"git did not answer within {GIT_SECONDS:.0f} s"}
    except subprocess.CalledProcessError as error:
        return {"git.missing": (error.stderr.strip().splitlines() or ["git failed"])[0]}
    return {
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.branch": branch,
        "git.dirty": "true" if changes else "false",
    }


def workspace_tags(workspace: Path, folder: Path) -> dict[str, str]:
    """The commit of the user's own code, and whether it was dirty, where it lies in another repository than `folder`.

    Args:
        workspace: Anywhere inside the user's repository.
        folder: Anywhere inside the repository that `repository_tags` records.

    Returns:
        `workspace.git.commit` and `workspace.git.dirty`, or `workspace.git.missing` with git's reason.
    """
    root = _root(workspace)
    if root is not None and root == _root(folder):
        return {}
    tags = repository_tags(workspace)
    names = ("mlflow.source.git.commit", "git.dirty", "git.missing")
    return {f"workspace.{name.removeprefix('mlflow.source.')}": tags[name] for name in names if name in tags}


def _root(folder: Path) -> str | None:
    try:
        return _git(folder, "rev-parse", "--show-toplevel")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    # --no-optional-locks: `git status` must not write to a repository that is mounted read-only
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=GIT_SECONDS)
    return done.stdout.strip()
