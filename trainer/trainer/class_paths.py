"""Imports the classes that a configuration names, before LightningCLI does.

LightningCLI tries each `class_path` as several things and reports the last failure: an ImportError within the user's
file reads as if the class were missing, and a `sys.exit()` in it ends the job without a word.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from trainer.config_error import cause
from trainer.errors import UserError, did_you_mean
from trainer.workspace import config_files, import_folders, read_config

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
BESIDE_CLASS_PATH = ("init_args", "dict_kwargs")


def check(words: list[str]) -> None:
    """Import every class that a command line and its configuration files name.

    Raises:
        UserError: A file is no YAML, or a class cannot be imported.
    """
    folders = import_folders(words)
    for config in [*map(read_config, config_files(words)), *_words_as_config(words)]:
        for class_path in _class_paths(config):
            _import(class_path, folders)


def _words_as_config(words: list[str]) -> Iterator[dict[str, Any]]:
    """Each argument `--a.b VALUE` or `--a.b=VALUE` as the configuration `{a: {b: VALUE}}`."""
    for word, after in zip_longest(words, words[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            continue
        try:
            config = yaml.safe_load(value if equals else after)
        except yaml.YAMLError:
            continue  # the parser says it
        for key in reversed(name[2:].removesuffix("+").split(".")):
            config = {key: config}
        yield config


def _class_paths(config: dict[str, Any]) -> Iterator[str]:
    trainer = config.get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
    for place, value in (("model", config.get("model")), ("data", config.get("data")), ("callbacks", callbacks)):
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, str) and DOTTED.fullmatch(entry) and not entry.endswith((".yaml", ".yml", ".json")):
                yield entry
            if isinstance(entry, dict) and "class_path" in entry:
                for key in set(entry) - {"class_path", *BESIDE_CLASS_PATH}:
                    raise UserError(
                        f"{place}: {key} stands beside class_path, where its arguments stand under init_args"
                        + did_you_mean(str(key), BESIDE_CLASS_PATH)
                    )
    yield from _nested_class_paths(config)


def _nested_class_paths(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        class_path = value.get("class_path")
        if isinstance(class_path, str) and DOTTED.fullmatch(class_path):
            yield class_path
        for entry in value.values():
            yield from _nested_class_paths(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _nested_class_paths(entry)


def _import(class_path: str, folders: list[Path]) -> None:
    module_name, _, name = class_path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            outer, _, inner = module_name.rpartition(".")
            if (
                missing == module_name
                and outer
                and inspect.isclass(getattr(importlib.import_module(outer), inner, None))
            ):
                return  # a class within a class, or a class's own constructor
            raise UserError(f"cannot import {class_path}: {_no_module(missing, folders)}") from error
        raise UserError(f"cannot import {class_path}: {cause(error)}") from error
    if not hasattr(module, name):
        classes = [known for known in dir(module) if inspect.isclass(getattr(module, known, None))]
        raise UserError(
            f"cannot import {class_path}: {module_name} has no {name}"
            + did_you_mean(name, {*classes, *getattr(module, "__all__", [])})
        )
    named = getattr(module, name)
    bases = inspect.getmro(named) if inspect.isclass(named) else ()
    if any(base.__module__.startswith("pytorch_lightning.") for base in bases):
        raise UserError(
            f"{class_path} is of the package `pytorch_lightning`: import `lightning` in its place, or run a script of "
            "yours with `trainer run`, which takes both"
        )


def _no_module(missing: str, folders: list[Path]) -> str:
    package, _, name = missing.rpartition(".")
    inside = getattr(importlib.import_module(package), "__path__", []) if package else folders
    searched = [str(folder) for folder in inside]
    known = [module.name for module in pkgutil.iter_modules(searched)]
    where = f"looked in {', '.join(searched)}" if searched else "it belongs beside the configuration file"
    return f"there is no module {missing}{did_you_mean(name, known)} ({where})"
