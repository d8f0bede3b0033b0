"""What a run was made from: the repository, the environment, the hardware. Read once, before training starts."""

from pathlib import Path

from trainer.provenance.environment import environment_tags
from trainer.provenance.hardware import hardware_tags
from trainer.provenance.repository import repository_tags, workspace_tags


def tags(command: list[str], folder: Path, workspace: Path | None = None) -> dict[str, str]:
    """Everything that is known before training starts, as tags of the run.

    Args:
        command: The command that the user typed, as words.
        folder: Where it was typed; the git repository around it is the one recorded.
        workspace: Where the user's own code lies; its repository is recorded too, where it is another one.
    """
    own = workspace_tags(workspace, folder) if workspace else {}
    return {**repository_tags(folder), **own, **environment_tags(command), **hardware_tags()}
