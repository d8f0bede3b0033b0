"""Five minutes of random kills; `make soak` runs the long one (soak.py)."""

from pathlib import Path

import pytest

from compose import NEEDS_ENGINE
from faults import table
from faults.servers import Servers
from faults.soak import Soak, plan

pytestmark = [pytest.mark.fault, *NEEDS_ENGINE]

SECONDS, KILLS, SEED = 300, 8, 20261124


def test_nothing_is_lost_in_a_soak(servers: Servers, tmp_path: Path) -> None:
    """Guards: what only several faults in a row lose: a crash while another is being made good."""
    soak = Soak(servers, tmp_path, print, plan(KILLS, SECONDS, SEED))
    outcomes = soak.run()
    for outcome in outcomes:
        table.add(outcome)
    assert all(kill.at is not None for kill in soak.kills)
    assert [problem for outcome in outcomes for problem in outcome.audit.problems] == []


def test_the_same_seed_gives_the_same_plan() -> None:
    """Guards: a loss that nobody can make happen again."""
    assert plan(30, 1200, 1) == plan(30, 1200, 1) != plan(30, 1200, 2)
    assert sum(kill.wait for kill in plan(30, 1200, 1)) < 1200
