"""Random kills of random components while one training follows another, each ended by the audit of the fault suite.

    make soak [SECONDS=1200] [KILLS=30] [SEED=…]        (needs Docker; the same seed gives the same plan of kills)

Exits with 1 if anything is lost, twice there or untrue. The stack has a project name and ports of its own.
"""

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from compose import Stack
from faults import table
from faults.audit import audit
from faults.cases import Outcome
from faults.servers import SERVERS, Servers
from faults.training import Training
from harness import free_port

OF_A_TRAINING = ("rank 0", "rank 1", "agent", "launch")
COMPONENTS = (*OF_A_TRAINING, *SERVERS)
WORDS = ("--model.init_args.pause", "0.08", "--model.init_args.best_epoch", "6")
"""Nine epochs of a second."""
LAST_SECONDS = 60.0
"""Of the whole, without kills: the last training comes to its end."""


@dataclass
class Kill:
    """A line of the plan, and what became of it."""

    component: str
    wait: float
    """Seconds since the one before."""
    at: float | None = None
    """Seconds since the begin."""
    training: str = ""


@dataclass
class Soak:
    """Trainings one after the other, struck by the kills of a plan."""

    servers: Servers
    folder: Path
    say: Callable[[str], None]
    kills: list[Kill]
    trainings: list[Training] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each training."""
    hung: str = ""

    def run(self) -> list[Outcome]:
        """Throw all kills, and audit every training once the last one has ended by itself."""
        self._began = time.monotonic()
        self._over = threading.Event()
        trains = threading.Thread(target=self._train, name="trainings", daemon=True)
        trains.start()
        try:
            for number, kill in enumerate(self.kills, 1):
                time.sleep(kill.wait)
                self._throw(kill)
                self.say(f"{kill.at:5.0f} s  kill {number}/{len(self.kills)}: {kill.component}  ({kill.training})")
            self.servers.wait_until_well()
        finally:
            self._over.set()
            trains.join()
        return [self._audited(training, spent) for training, spent in zip(self.trainings, self.seconds, strict=True)]

    def _train(self) -> None:
        while not self._over.is_set() and not self.hung:
            number = len(self.trainings)
            training = Training(
                self.folder / str(number), self.servers.uri, f"soak-{number}", devices=1 + number % 2, words=WORDS
            )
            training.most_starts = len(self.kills) + 1
            self.trainings.append(training)
            began = time.monotonic()
            try:
                training.run_until_it_ends_by_itself()
            except AssertionError as error:
                self.hung = str(error)
            finally:
                training.end_at_once()
                self.seconds.append(time.monotonic() - began)

    def _throw(self, kill: Kill) -> None:
        if kill.component in SERVERS:
            kill.at, kill.training = time.monotonic() - self._began, self._newest().experiment
            self.servers.crash(kill.component)
            return
        while True:  # between two starts there is nothing to kill
            training = self._newest()
            try:
                _find(training, kill.component).kill()
            except (psutil.NoSuchProcess, AssertionError):
                time.sleep(0.2)
                continue
            kill.at, kill.training = time.monotonic() - self._began, training.experiment
            return

    def _newest(self) -> Training:
        while not self.trainings:
            time.sleep(0.01)
        return self.trainings[-1]

    def _audited(self, training: Training, spent: float) -> Outcome:
        found = audit(self.servers.uri, training.experiment, training.lab / "state", training.truth)
        struck = [kill.component for kill in self.kills if kill.training == training.experiment]
        killed = sum(component in OF_A_TRAINING for component in struck)
        cut_off = sum(code != 0 for code in training.exit_codes)
        found.demand(training.exit_codes[-1:] == [0], f"it did not end by itself: {self.hung}")
        found.demand(cut_off <= killed, f"cut off {cut_off} times by {killed} kills of its processes")
        return Outcome(", ".join(struck) or "none", training.experiment, found, training.exit_codes, spent)


def plan(kills: int, seconds: float, seed: int) -> list[Kill]:
    """Random components at random times, the same for the same seed."""
    draw = random.Random(seed)
    pace = (seconds - LAST_SECONDS) / kills
    return [Kill(draw.choice(COMPONENTS), pace * draw.uniform(0.4, 1.4)) for _ in range(kills)]


def _find(training: Training, component: str) -> psutil.Process:
    if component == "launch":
        if training.ended():
            raise psutil.NoSuchProcess(0)
        return psutil.Process(training.launch.pid)
    if component == "agent":
        return training.agent()
    return training.rank(int(component[-1]) % training.devices)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))
    given = parser.parse_args()
    print(f"seed {given.seed}: {given.kills} kills in {given.seconds:.0f} s", flush=True)
    stack = Stack(f"labsoak{free_port()}", free_port(), free_port())
    try:
        stack.must("build", "mlflow")
        stack.must("up", "--detach", "--wait", "mlflow")
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            kills = plan(given.kills, given.seconds, given.seed)
            outcomes = Soak(Servers(stack), Path(folder), lambda line: print(line, flush=True), kills).run()
    finally:
        stack.must("down", "--volumes", "--timeout", "5", "--rmi", "local")
    print("\n".join(table.lines(outcomes)))
    print(f"seed {given.seed}: {len(kills)} kills, {sum(outcome.audit.lost for outcome in outcomes)} points lost")
    return int(any(outcome.audit.problems for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
