"""The tracking server is away, the training is killed meanwhile, and started again after the outage or during it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from compose import NEEDS_ENGINE
from faults.audit import audit
from faults.moments import marked
from faults.servers import Servers
from faults.training import Training

pytestmark = [pytest.mark.fault, *NEEDS_ENGINE]


@pytest.fixture
def killed_without_server(servers: Servers, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Training]:
    """A training whose server went away in epoch 1, and that was killed in epoch 3."""
    training = Training(tmp_path, servers.uri, request.node.name)
    try:
        training.start()
        assert training.until(marked("mid-epoch 1")), training.output
        servers.stop("mlflow")
        assert training.until(marked("mid-epoch 3")), training.output
        assert training.launch is not None
        training.launch.kill()
        training.wait()
        yield training
    finally:
        training.end_at_once()
        servers.start("mlflow")
        servers.wait_until_well()


def test_killed_in_an_outage_and_started_after_it(killed_without_server: Training, servers: Servers) -> None:
    """Guards: what was on disk alone when the job was killed, forgotten by the start that goes on with it."""
    training = killed_without_server
    servers.start("mlflow")
    servers.wait_until_well()
    training.run_until_it_ends_by_itself()
    assert len(training.exit_codes) == 2, training.output
    assert audit(servers.uri, training.experiment, training.lab / "state", training.truth).problems == []


def test_killed_in_an_outage_and_started_in_it(killed_without_server: Training, servers: Servers) -> None:
    """Guards: a job that cannot go on until the server is back, or that does and forgets what it wrote without it."""
    training = killed_without_server
    training.start("--offline")
    assert training.until(marked("tested")), training.output
    servers.start("mlflow")
    assert training.wait() == 0, training.output
    assert audit(servers.uri, training.experiment, training.lab / "state", training.truth).problems == []
