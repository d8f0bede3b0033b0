"""Where a user's own code lies: the folder that WORKSPACE names, and those of the configuration files."""

import difflib
import os
import sys
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

from trainer.errors import UserError


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
        UserError: One of the configuration files is not there.
    """
    for file in config_files(words):
        if not file.is_file():
            beside = [other.stem for other in file.parent.glob(f"*{file.suffix}") if other.is_file()]
            raise UserError(f"there is no configuration file {file}" + did_you_mean(file.stem, beside))


def folder(words: list[str]) -> Path | None:
    """The folder of the user's own code: WORKSPACE, else that of the last configuration file."""
    if workspace := os.environ.get("WORKSPACE"):
        return Path(workspace)
    files = config_files(words)
    return files[-1].parent if files else None


def import_folders(words: list[str]) -> list[Path]:
    """The folders whose modules can be named in a configuration without more settings."""
    workspace = os.environ.get("WORKSPACE")
    folders = [Path(workspace)] if workspace else []
    folders += [file.parent for file in config_files(words)]
    return list(dict.fromkeys(folder.resolve() for folder in folders))


def make_importable(words: list[str]) -> None:
    """Put these folders before all others, as Python does with a script's own."""
    sys.path[:0] = [str(folder) for folder in import_folders(words) if str(folder) not in sys.path]


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known: the close one that is, or nothing."""
    close = difflib.get_close_matches(given, sorted(set(known)), n=1)
    return f"; did you mean {close[0]}?" if close else ""
