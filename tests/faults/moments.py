"""When a fault is thrown: moments that a training passes through, told by what it leaves on disk."""

from collections.abc import Callable
from dataclasses import dataclass

import psutil

from faults.training import Training


@dataclass(frozen=True)
class Moment:
    """A moment by its name in the table."""

    name: str
    reached: Callable[[Training], bool]


def marked(mark: str) -> Callable[[Training], bool]:
    return lambda training: mark in training.marks


def asking_for_the_run(training: Training) -> bool:
    return training.job is not None


def uploading(training: Training) -> bool:
    """Whether launch has the payload's copy open: it is on its way to the artifact store now."""
    assert training.launch is not None
    try:
        return any("payload.bin" in file.path for file in psutil.Process(training.launch.pid).open_files())
    except psutil.Error:
        return False


def closing(training: Training) -> bool:
    """Whether every rank has come to its end, and launch has the rest to deliver and the status to set."""
    job = training.job
    return job is not None and all(job.done(rank) for rank in range(training.devices))


START = Moment("start", asking_for_the_run)
MID_EPOCH = Moment("mid-epoch", marked("mid-epoch 2"))
CHECKPOINT = Moment("checkpoint", marked("checkpoint 2"))
UPLOAD = Moment("upload", uploading)
TEST = Moment("test", marked("testing"))
MODEL = Moment("model", marked("tested"))
"""The best model is being logged."""
CLOSING = Moment("closing", closing)
