"""A process of a job must not outlive the one that started it: an orphan would train on, unseen, to the end."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1  # linux/prctl.h
AGENT_PID = "TRAINER_AGENT_PID"
"""Environment variable by which the torchrun agent tells its workers who their parent is."""


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies (Linux; elsewhere nothing happens).

    Args:
        parent: The pid that this process believes to be its parent's; if it has died already, this process exits.
    """
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except AttributeError:  # no prctl: not Linux
        return
    if os.getppid() != parent:
        os._exit(1)
