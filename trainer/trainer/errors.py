"""The one exception for mistakes that a user can put right."""


class UserError(ValueError):
    """A mistake in what the user gave us: a path, an option, a configuration.

    The message is one line that names the cause and says what to do; `trainer` prints it as
    `trainer: error: …` without a traceback. Broken invariants of our own use `assert`.
    """

    def __init__(self, message: str) -> None:
        # A DataLoader worker's exception is rebuilt here with its traceback as text in front: keep our line of it.
        last = message.strip().rpartition("\n")[2]
        super().__init__(last.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: "))
