"""A job that dies when the server has made its run, and nobody has written that down: a moment too short to hit."""

from pathlib import Path

import pytest

from compose import NEEDS_ENGINE
from faults.audit import audit
from faults.moments import START
from faults.servers import Servers
from faults.training import Training
from harness import until

pytestmark = [pytest.mark.fault, *NEEDS_ENGINE]


def test_a_run_that_was_asked_for_is_the_jobs(servers: Servers, tmp_path: Path) -> None:
    """Guards: a second run beside an empty one that is closed as KILLED. (It was so.)"""
    training = Training(tmp_path, servers.uri, "asked-for")
    try:
        training.start()
        assert training.until(START.reached), training.output
        assert training.job is not None
        record = training.job.folder / "run.json"
        assert training.until(lambda _: record.exists()), training.output
        assert training.launch is not None
        training.launch.kill()
        training.wait()
        until(lambda: not training.processes(), seconds=15)
        record.unlink()
        training.run_until_it_ends_by_itself()
    finally:
        training.end_at_once()
    assert audit(servers.uri, training.experiment, training.lab / "state", training.truth).problems == []
