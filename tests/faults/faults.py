"""The named faults, each a way in which a lab loses something."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from faults.moments import CHECKPOINT, CLOSING, MID_EPOCH, MODEL, START, TEST, UPLOAD, Moment
from faults.servers import SERVERS, Servers
from faults.training import Training

AWAY_SECONDS = 15.0
OUTAGE_SECONDS = 10.0
FROZEN_SECONDS = 8.0
FULL_SECONDS = 3.0
DISK = "256m"


@dataclass(frozen=True)
class Fault:
    """A fault and what a lab that tells the truth makes of it."""

    name: str
    throw: Callable[[Training, Servers], None]
    moments: tuple[Moment, ...]
    exit_codes: tuple[int, ...] = (0,)
    """What the command may return that was struck; the same command after it returns 0."""
    status: str | None = None
    """What the server says about the run then; None where nobody was left to tell it."""
    devices: int = 1
    words: tuple[str, ...] = ()
    own_disk: bool = False
    """The lab lies on a small disk of its own."""
    of_servers: bool = False
    """Strikes whoever uses the servers."""
    over_a_link: bool = False
    """The training reaches the server through a network of its own (slow_network.py)."""
    outage: str | None = None
    """The metric of the run that must say how long the server was away."""


def _full_disk(training: Training, servers: Servers) -> None:
    filler = training.lab / "filler"
    try:
        with open(filler, "wb", buffering=0) as file:
            while file.write(bytes(2**16)):
                pass
    except OSError:
        pass
    time.sleep(FULL_SECONDS)
    filler.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk that a test can fill, mounted on a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "faults", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _slow_network(training: Training, servers: Servers) -> None:
    assert training.link is not None
    training.link.slow_down()


def _kill_launch(training: Training, servers: Servers) -> None:
    assert training.launch is not None
    training.launch.kill()


def _terminate_launch(training: Training, servers: Servers) -> None:
    assert training.launch is not None
    training.launch.terminate()


# "model" is left out for rank 1, which has ended by then, and "closing" for all workers. A checkpoint does not concern
# the servers: they take it later, as an upload.
WORKERS = (START, MID_EPOCH, CHECKPOINT, UPLOAD)
LAUNCH = (START, MID_EPOCH, CHECKPOINT, UPLOAD, MODEL, CLOSING)
OF_SERVERS = (START, MID_EPOCH, UPLOAD, MODEL, CLOSING)

FAULTS = (
    Fault("kill -9 rank 0", lambda training, _: training.rank(0).kill(), (*WORKERS, MODEL), (1,), "FAILED"),
    Fault("kill -9 rank 1", lambda training, _: training.rank(1).kill(), (*WORKERS, TEST), (1,), "FAILED", devices=2),
    Fault(
        "kill -9 rank 1, restarted",
        lambda training, _: training.rank(1).kill(),
        (*WORKERS, TEST),
        devices=2,
        words=("--max-restarts", "2"),
    ),
    Fault("kill -9 agent", lambda training, _: training.agent().kill(), (*WORKERS, MODEL), (1,), "FAILED"),
    Fault("kill -9 launch", _kill_launch, LAUNCH, (-signal.SIGKILL,)),
    Fault("SIGTERM launch", _terminate_launch, (*WORKERS, MODEL), (128 + signal.SIGTERM,), "KILLED"),
    Fault(
        # whether a worker survives it depends on what it was just writing
        "disk full 3 s",
        _full_disk,
        (START, MID_EPOCH, CHECKPOINT, UPLOAD, MODEL),
        (0, 1),
        own_disk=True,
    ),
    Fault("kill -9 mlflow", lambda _, servers: servers.crash("mlflow"), OF_SERVERS, of_servers=True),
    Fault("kill -9 postgres", lambda _, servers: servers.crash("postgres"), OF_SERVERS, of_servers=True),
    Fault("kill -9 minio", lambda _, servers: servers.crash("minio"), OF_SERVERS, of_servers=True),
    Fault(
        "mlflow frozen 8 s", lambda _, servers: servers.freeze("mlflow", FROZEN_SECONDS), OF_SERVERS, of_servers=True
    ),
    # For the rest of the training.
    Fault("slow network", _slow_network, (START, MID_EPOCH, UPLOAD), over_a_link=True),
    # "away", where it is one server alone, is a refused connection at once; bench/outage takes it away for longer.
    Fault(
        "mlflow away 10 s",
        lambda _, servers: servers.away(OUTAGE_SECONDS, "mlflow"),
        (MID_EPOCH,),
        of_servers=True,
        outage="outage_seconds",
    ),
    # Whether a job sees it depends on how long MLflow's server tries S3 by itself: its length is for test_artifacts.
    Fault("minio away 30 s", lambda _, servers: servers.away(3 * OUTAGE_SECONDS, "minio"), (UPLOAD,), of_servers=True),
    Fault("servers away 15 s", lambda _, servers: servers.away(AWAY_SECONDS, *SERVERS), OF_SERVERS, of_servers=True),
)
