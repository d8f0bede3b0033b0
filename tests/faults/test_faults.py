"""Every named fault at every moment that makes sense (faults.py), each ended by the same audit (audit.py)."""

from collections.abc import Callable

import pytest

from compose import NEEDS_ENGINE
from faults.cases import CASES, Case, Outcome

pytestmark = [pytest.mark.fault, *NEEDS_ENGINE]

OF_TRAININGS = [case for case in CASES if not case.fault.of_servers]
OF_SERVERS = [case for case in CASES if case.fault.of_servers]


@pytest.mark.parametrize("case", OF_TRAININGS, ids=str)
def test_nothing_is_lost_with_a_process_or_the_disk(played: Callable[[Case], Outcome], case: Case) -> None:
    """Guards: points, files or the truth that go with a rank, the agent, launch, or the room on the disk."""
    assert played(case).audit.problems == []


@pytest.mark.parametrize("case", OF_SERVERS, ids=str)
def test_nothing_is_lost_with_a_server(played: Callable[[Case], Outcome], case: Case) -> None:
    """Guards: points or files that a server takes with it, and a training that ends or waits since one is away."""
    assert played(case).audit.problems == []
