"""The one exception for mistakes that a user can put right, and what its messages have in common."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave us: a path, an option, a configuration.

    The message is one line that names the cause and says what to do; `trainer` prints it as
    `trainer: error: …` without a traceback. Broken invariants of our own use `assert`.
    """

    def __init__(self, message: str) -> None:
        # A DataLoader worker's exception is rebuilt here with its traceback as text in front: keep our line of it.
        last = message.strip().rpartition("\n")[2]
        super().__init__(last.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: "))


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known: the close one that is, or nothing."""
    close = difflib.get_close_matches(given, sorted(set(known)), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first `most` of some names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
