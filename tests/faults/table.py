"""The audits as a table: one line for each case, and what is wrong under it."""

from faults.cases import Outcome

OUTCOMES: list[Outcome] = []
"""Of this process, in the order in which they came."""
HEADER = ("FAULT", "MOMENT", "POINTS", "LOST", "TWICE", "WRONG", "FILES", "STATUS", "EXIT CODES", "SECONDS", "")


def add(outcome: Outcome) -> None:
    """Print a line, for whoever watches, and keep it for the table at the end."""
    OUTCOMES.append(outcome)
    print("  ".join(_row(outcome)), *outcome.audit.problems, sep="\n    ", flush=True)


def lines(outcomes: list[Outcome]) -> list[str]:
    rows = [HEADER] + [_row(outcome) for outcome in outcomes]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    found = []
    for number, row in enumerate(rows):
        found.append("  ".join(f"{word:{width}}" for word, width in zip(row, widths, strict=True)).rstrip())
        found += [f"    {problem}" for problem in outcomes[number - 1].audit.problems if number]
    bad = sum(bool(outcome.audit.problems) for outcome in outcomes)
    seconds = sum(outcome.seconds for outcome in outcomes)
    return [*found, f"{len(outcomes)} cases, {bad} with problems, {seconds:.0f} s"]


def _row(outcome: Outcome) -> tuple[str, ...]:
    audit = outcome.audit
    return (
        outcome.fault,
        outcome.moment,
        f"{audit.got}/{audit.expected}",
        str(audit.lost),
        str(audit.duplicated),
        str(audit.wrong),
        str(audit.artifacts),
        audit.status,
        " ".join(map(str, outcome.exit_codes)),
        f"{outcome.seconds:.0f}",
        "PROBLEM" if audit.problems else "",
    )
