"""jsonargparse's and Lightning's messages about a wrong configuration, as one line that names the cause."""

# What jsonargparse adds for every type that a value might have had; none of it is what the user got wrong.
NOISE = ("Does not validate against", "Subtypes:", "Errors:", "Given value type:", "- Expected a <class 'NoneType'>")
NESTED_VALUE = "Given value: NestedArg("


def one_line(message: str) -> str:
    """The lines of a message that say what is wrong, joined."""
    lines = [line.strip() for line in message.splitlines()]
    said = [line for line in lines if line and not line.startswith((*NOISE, NESTED_VALUE))]
    return " ".join(line.removeprefix("- ") for line in said)
