"""A case: one fault at one moment of one training, and what the audit says in the end."""

import contextlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from faults.audit import PAYLOAD_BYTES, Audit, audit, outages
from faults.faults import FAULTS, OUTAGE_SECONDS, Fault, small_disk
from faults.moments import Moment
from faults.servers import Servers
from faults.slow_network import Link
from faults.training import Training


@dataclass(frozen=True)
class Case:
    """A fault at a moment."""

    fault: Fault
    moment: Moment

    def __str__(self) -> str:
        return re.sub(r"\W+", "-", f"{self.fault.name} {self.moment.name}")


@dataclass
class Outcome:
    """A line of the table."""

    fault: str
    moment: str
    audit: Audit
    exit_codes: list[int]
    seconds: float


CASES = [Case(fault, moment) for fault in FAULTS for moment in fault.moments]


def play(case: Case, servers: Servers, folder: Path) -> Outcome:
    """Train, throw the fault, give the same command again until it has ended by itself, and audit.

    Args:
        case: What happens.
        servers: All are up, and are so again at the end.
        folder: A new one.
    """
    fault, began = case.fault, time.monotonic()
    with contextlib.ExitStack() as around:
        link = around.enter_context(Link(servers.uri)) if fault.over_a_link else None
        training = Training(folder, link.uri if link else servers.uri, str(case), fault.devices, fault.words, link)
        if fault.own_disk:
            around.enter_context(small_disk(training.lab))
        try:
            found = _play(case, servers, training)
        except AssertionError as error:  # it hangs, or never came so far: a line of the table too
            found = Audit(status="?", problems=[str(error)])
        finally:
            training.end_at_once()
    return Outcome(fault.name, case.moment.name, found, training.exit_codes, time.monotonic() - began)


def _play(case: Case, servers: Servers, training: Training) -> Audit:
    fault = case.fault
    training.start()
    assert training.until(case.moment.reached), f"ended before {case.moment.name}:\n{training.output[-2000:]}"
    fault.throw(training, servers)
    struck = training.wait()
    servers.wait_until_well()
    status = _status(training)
    training.run_until_it_ends_by_itself()
    found = audit(servers.uri, training.experiment, training.lab / "state", training.truth)
    found.demand(struck in fault.exit_codes, f"exit code {struck} instead of one of {fault.exit_codes}")
    if struck != 0 and fault.status is not None:
        found.demand(status in (fault.status, None), f"status {status} instead of {fault.status} when it was cut off")
    if training.link is not None:
        found.demand(training.link.carried > PAYLOAD_BYTES, f"only {training.link.carried} bytes went over the link")
    if fault.outage is not None:
        lengths = outages(servers.uri, training.experiment, fault.outage)
        found.demand(
            sum(lengths) >= OUTAGE_SECONDS / 2, f"{fault.outage} of {OUTAGE_SECONDS:.0f} s and more: {lengths}"
        )
    found.demand(len(training.exit_codes) <= 2, f"{len(training.exit_codes)} starts: {training.exit_codes}")
    found.demand(not training.processes(), f"processes are left: {training.processes()}")
    return found


def _status(training: Training) -> str | None:
    """What the server says about the training's run now; None where it has none yet."""
    run = training.job and training.job.run_record()
    return MlflowClient(training.uri).get_run(run.run_id).info.status if run else None
