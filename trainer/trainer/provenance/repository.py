"""The git commit that a job was started from, under the tag names that MLflow's UI knows."""

import subprocess
from pathlib import Path


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
    except FileNotFoundError:
        return {"git.missing": "git is not installed"}
    except subprocess.CalledProcessError as error:
        return {"git.missing": (error.stderr.strip().splitlines() or ["git failed"])[0]}
    return {
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.branch": branch,
        "git.dirty": "true" if changes else "false",
    }


def _git(folder: Path, *arguments: str) -> str:
    # --no-optional-locks: `git status` must not write to a repository that is mounted read-only
    command = ["git", "--no-optional-locks", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
