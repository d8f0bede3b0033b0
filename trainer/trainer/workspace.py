"""Where a user's own code lies: the folder that WORKSPACE names, and those of the configuration files."""

import os
import re
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import UserError, did_you_mean


def config_files(words: list[str]) -> list[Path]:
    """The configuration files that a command line names with `--config`, in its order."""
    files = []
    for word, after in zip_longest(words, words[1:], fillvalue=""):
        if word in ("--config", "-c"):
            files.append(after)
        elif word.startswith("--config="):
            files.append(word.removeprefix("--config="))
    # jsonargparse also takes a configuration as text, and one at a URL
    return [Path(file) for file in files if file and not {"{", "\n"} & set(file) and "://" not in file]


def require_config_files(words: list[str]) -> None:
    """
    Raises:
        UserError: One of the configuration files is not there, or is none.
    """
    for file in config_files(words):
        if not file.is_file():
            beside = [other.name for other in file.parent.glob(f"*{file.suffix}") if other.is_file()]
            raise UserError(f"there is no configuration file {file}" + did_you_mean(file.name, beside))
        read_config(file)


def read_config(file: Path) -> dict[str, Any]:
    """
    Raises:
        UserError: It cannot be read, or is no configuration.
    """
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"{file}, line {mark.line + 1}" if mark else str(file)
        raise UserError(f"{where}: this is no YAML: {problem or error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} is no configuration: it has no keys such as model:, data:, trainer:")
    return config


def folder(words: list[str]) -> Path | None:
    """The folder of the user's own code: that of the last configuration file, else WORKSPACE."""
    files = config_files(words)
    if files:
        return files[-1].parent
    workspace = os.environ.get("WORKSPACE")
    return Path(workspace) if workspace else None


def sources(words: list[str]) -> list[str]:
    """What tells two jobs of one name apart: the configuration files; in a container, of which folder of the host.

    Without any, the classes that the command line names.
    """
    files = [file.resolve() for file in config_files(words)]
    if not files:
        line = " ".join(words)
        return re.findall(r"--(?:model|data)(?:\.class_path)?[= ]([^ ]+)", line)
    workspace = os.environ.get("WORKSPACE")
    mounted = workspace and any(file.is_relative_to(workspace) for file in files)
    on_host = os.environ.get("WORKSPACE_ON_HOST")
    return [*map(str, files), *([on_host] if mounted and on_host else [])]


def import_folders(words: list[str]) -> list[Path]:
    """The folders whose modules can be named in a configuration without more settings."""
    workspace = os.environ.get("WORKSPACE")
    folders = [Path(workspace)] if workspace else []
    folders += [file.parent for file in config_files(words)]
    return list(dict.fromkeys(folder.resolve() for folder in folders))


def make_importable(words: list[str]) -> None:
    """Put these folders before all others, as Python does with a script's own."""
    sys.path[:0] = [str(folder) for folder in import_folders(words) if str(folder) not in sys.path]
