"""Run by test_bad_inputs.py: what the app says to many command lines, at the price of one import.

    python app_answers.py < command-lines.json > answers.json

Each is answered by a child of this process, so that none can spoil the next. The child does what a worker does, up to
the end of the training, but for the run: it needs no server.
"""

import json
import os
import sys
import traceback
from pathlib import Path

from trainer import app
from trainer.errors import UserError
from trainer.tracking.job import Job

ALONE = {"LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "1", "WORLD_SIZE": "1", "ACCELERATOR": "cpu"}


def main(words: list[str]) -> int:
    """The exit code; `python -m` has the current folder on the import path."""
    os.environ.update(ALONE)
    sys.path[0], sys.argv = "", ["trainer"]
    try:
        app.train(app.TrainingCLI(Job(Path("job")), words))
    except UserError as error:
        print(f"trainer: error: {error}")
        return 2
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def answer(words: list[str]) -> tuple[int, str]:
    """The exit code and everything that is printed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(write, sys.stdout.fileno())
        os.dup2(write, sys.stderr.fileno())
        code = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    os.close(write)
    with open(read) as output:
        text = output.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), text


if __name__ == "__main__":
    json.dump([answer(words) for words in json.load(sys.stdin)], sys.stdout)
