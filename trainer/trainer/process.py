"""When a process of a job must end: an orphan would train on, unseen; a rank that hangs would hold up the job's end."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable

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


def end_soon_after_sigterm(seconds: float, note: Callable[[], None] = lambda: None) -> None:
    """Have this process end `seconds` after SIGTERM at the latest, whatever its main thread is stuck in.

    Where another rank has died the main thread often waits in a collective, and runs no signal handler; and Lightning's
    handler is a collective itself (Lightning 2.6.6, signal_connector.py). Python's C handler writes the signal's number
    into a pipe in any case. Call this from the main thread.

    Args:
        seconds: From the signal to the end.
        note: Called at once when the signal comes, from another thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # A forked DataLoader worker that is told to end must not end this process.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))

    def watch() -> None:
        while signal.SIGTERM not in os.read(reader, 64):
            pass
        note()
        time.sleep(seconds)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="end after SIGTERM", daemon=True).start()
