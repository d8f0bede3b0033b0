"""The torchrun agent of one node, started by launch in a process of its own: `python -m trainer.launch.agent`.

It is `torch.distributed.run` with a quiet end: each worker has left its failure in the job's folder (failure.py), so
torchrun's own report, a page of it, would only hide the one line that matters.
"""

import json
import logging
import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from trainer.process import AGENT_PID, die_with_parent


def main() -> int:
    """Run the workers to their end.

    Args (command line): the launch process's pid, the descriptor of a pipe for the exit codes of failed ranks,
        torchrun's arguments.

    Returns:
        0, 1 where a worker failed, or 128 + the signal that ended the agent.
    """
    parent, report, *arguments = sys.argv[1:]
    die_with_parent(int(parent))
    os.environ[AGENT_PID] = str(os.getpid())
    logging.disable(logging.ERROR)
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        exit_codes = {failure.local_rank: failure.exitcode for failure in error.failures.values()}
        with open(int(report), "w") as pipe:
            json.dump(exit_codes, pipe)
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Leave without the interpreter's teardown: the workers are gone and nothing else is to be kept.
    os._exit(status)
