"""jsonargparse's and Lightning's messages about a wrong configuration, as one line that names the cause."""

import inspect
import re
import traceback
from collections.abc import Iterable
from pathlib import Path
from pydoc import locate

import jsonargparse
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from trainer.errors import UserError, did_you_mean
from trainer.failure import place

# What jsonargparse adds for every type that a value might have had; none of it is what the user got wrong.
NOISE = (
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "- Expected a <class 'NoneType'>",
    "Subclass types expect one of:",
    "- a class path (str)",
    "- a dict with",
    "Given value: NestedArg(",
    "Given value: Namespace(",
    "Given value: {",
    "Given value: [{",
)
# The same, where something else is said as well.
FAINT_NOISE = ("- Expected a path but", "- Not a valid subclass of")

PLAIN = {
    r'Parser key "([\w.]+)":': r"\1:",
    r"Expected a dot import path string: (\S+)( Given value: \S+)?": r"\1 is no class path such as net.Net",
    r"Expected an? <class '(?:\w+\.)*(\w+)'>": r"expected \1",
    r"\.? (Got|Given) value: ": ", got ",
}

JSONARGPARSE = Path(jsonargparse.__file__).parent

UNKNOWN_IN_CLASS = re.compile(r"given class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted")
UNKNOWN_IN_GROUP = re.compile(r"Group '([\w.]+)' does not accept option '([\w.]+)'")
UNKNOWN = re.compile(r"Option '([\w.]+)' is not accepted|unrecognized arguments: --([\w.-]+)")


def one_line(message: str) -> str:
    """The lines of a message that say what is wrong, joined."""
    message = re.sub(r"(- )?Does not validate against any of the Union subtypes|typing\.", "", message)
    lines = [line.strip() for line in message.splitlines()]
    said = [line for line in lines if line and not line.startswith(NOISE)]
    said = [line for line in said if not line.startswith(FAINT_NOISE)] or said
    text = " ".join(dict.fromkeys(re.sub(r"^(- )+", "", line) for line in said))
    for pattern, plain in PLAIN.items():
        text = re.sub(pattern, plain, text)
    return text


def wrong_option(message: str, options: Iterable[str]) -> str:
    """The line for an option that is not known, with the one that was meant.

    Args:
        message: What the parser says.
        options: The dotted names of all options that the parser knows.
    """
    line = one_line(message)
    if found := UNKNOWN_IN_CLASS.search(message):
        class_path, name = found.groups()
        arguments = _arguments_of(class_path)
        return line + (did_you_mean(name, arguments) or f"; it takes {', '.join(arguments) or 'no arguments'}")
    if found := UNKNOWN_IN_GROUP.search(message):
        name = ".".join(found.groups())
    elif found := UNKNOWN.search(message):
        name = found[1] or found[2]
    else:
        return line
    known = list(options)
    first, dot, rest = name.partition(".")
    # below `model` and `data` the options are the class's: compare the first part alone
    return line + (did_you_mean(name, known) or did_you_mean(first, [option for option in known if "." not in option]))


def _arguments_of(class_path: str) -> list[str]:
    """The names that a class takes, those of its base classes where it passes on what it does not know."""
    named = locate(class_path)
    if not inspect.isclass(named):
        return list(inspect.signature(named).parameters) if callable(named) else []
    names: list[str] = []
    for base in inspect.getmro(named):
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        names += [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def cause(error: BaseException) -> str:
    """What an exception says, with its kind and place where it comes from the user's own code.

    Args:
        error: Where jsonargparse has wrapped what a class raised, that is taken instead.
    """
    while error.__cause__ is not None and _raised_in(error).is_relative_to(JSONARGPARSE):
        error = error.__cause__
    if isinstance(error, UserError):
        return str(error)
    said = one_line(str(error))
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {said}"  # which names the file and the line
    if where := place(error):
        return f"{type(error).__name__}: {said}{where}"
    return said if isinstance(error, ValueError | MisconfigurationException) else f"{type(error).__name__}: {said}"


def _raised_in(error: BaseException) -> Path:
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename) if frames else Path()
