"""The servers that the fault suite strikes, trainings two at a time, and the table at the end."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from compose import Stack
from faults import table
from faults.cases import Case, Outcome, play
from faults.servers import Servers

AT_ONCE = 2
"""Trainings: most of one is waiting and importing, and what strikes one of them does not concern the other."""


@pytest.fixture(scope="session")
def servers(stack: Stack) -> Servers:
    """The servers of the suite's stack, all up."""
    stack.must("up", "--detach", "--wait", "mlflow")
    return Servers(stack)


@pytest.fixture(scope="session")
def played(
    request: pytest.FixtureRequest, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Case], Outcome]]:
    """Plays cases: those that strike a training two at a time, those that strike the servers alone."""
    selected = [item.callspec.params.get("case") for item in request.session.items if hasattr(item, "callspec")]
    apart = [case for case in selected if isinstance(case, Case) and not case.fault.of_servers]
    folders: dict[Case, Path] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:

        def begin(case: Case) -> "Future[Outcome]":
            folders[case] = tmp_path_factory.mktemp(str(case))
            return pool.submit(play, case, servers, folders[case])

        begun = {case: begin(case) for case in apart}

        def result(case: Case) -> Outcome:
            if case.fault.of_servers:
                for other in begun.values():
                    other.exception()  # waits; its own test reports it
            outcome = begun[case].result() if case in begun else begin(case).result()
            table.add(outcome)
            if not outcome.audit.problems:  # else it stays to be looked at
                shutil.rmtree(folders[case])
            return outcome

        yield result
        pool.shutdown(cancel_futures=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if table.OUTCOMES:
        terminalreporter.section("the audit of every fault")
        for line in table.lines(table.OUTCOMES):
            terminalreporter.write_line(line)
