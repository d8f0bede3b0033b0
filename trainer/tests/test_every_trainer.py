"""What every Trainer of a job gets: refusals of what diverges or hangs, equal replicas, exact evaluation."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer.errors import UserError
from trainer.every_trainer import for_lightning
from trainer.every_trainer.replicas import checksums
from trainer.installation import PYPROJECT, require_current
from trainer.tracking.job import Job

from .every_trainer_ranks import SIZE


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What happened in each case, on 1, 2 and 3 processes."""
    folder = tmp_path_factory.mktemp("job")
    Job(folder).write_arguments(["fit"])
    script = Path(__file__).with_name("every_trainer_ranks.py")
    found = {}
    for world_size in (1, 2, 3):
        out = folder / f"{world_size}.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
        subprocess.run([*command, script, folder, out], check=True, timeout=300)
        found[world_size] = json.loads(out.read_text())
    return found


def test_fact_A_the_stock_callback_is_refused_and_ours_named(outcomes: dict[int, dict[str, Any]]) -> None:
    """Guards: BackboneFinetuning under DDP, after which every rank trains a network of its own (Lightning #20340)."""
    assert outcomes[2]["BackboneFinetuning"].startswith("UserError")
    assert "trainer.finetuning.StagedFineTuning" in outcomes[2]["BackboneFinetuning"]
    assert outcomes[1]["BackboneFinetuning"] is None, "on one process it does what it says"


def test_fact_A_replicas_that_differ_end_the_job(outcomes: dict[int, dict[str, Any]]) -> None:
    """Guards: an unfreezing by hand that DDP does not know of; the loss looks normal and the ranks diverge."""
    assert outcomes[2]["by hand"].startswith("RuntimeError: the replicas differ after epoch 1")
    assert "backbone.0.weight" in outcomes[2]["by hand"]
    assert outcomes[1]["by hand"] is None and outcomes[2]["as it should be"] is None


def test_fact_F_a_save_that_would_hang_is_refused(outcomes: dict[int, dict[str, Any]]) -> None:
    """Guards: save_on_exception, a collective of which only the failing rank knows (Lightning #20187)."""
    assert outcomes[2]["save_on_exception"].startswith("UserError: ModelCheckpoint saves when an exception")
    assert outcomes[1]["save_on_exception"] is None


def test_fact_O_a_trainer_with_other_devices_is_refused(outcomes: dict[int, dict[str, Any]]) -> None:
    """Guards: Trainer(devices=1) in a job of two processes, each of which trains alone on all of the data."""
    assert outcomes[2]["other devices"].startswith("UserError: this Trainer trains on 1 process(es), the job has 2")


@pytest.mark.parametrize("place", ["loaders", "module", "data module"])
def test_fact_N_users_own_loaders_are_evaluated_exactly(outcomes: dict[int, dict[str, Any]], place: str) -> None:
    """Guards: samples that Lightning's DistributedSampler repeats, and an integer mean of batch sizes (#21859).

    Without ExactEvaluation `counted` is a share of 18 samples; without `_exact_reduce` `averaged` is too high by 1/16.
    Each was tried. A plainly uneven split hangs here, since the network has buffers.
    """
    alone = outcomes[1][place]
    assert alone["validate counted"] * SIZE == pytest.approx(round(alone["validate counted"] * SIZE), abs=1e-5)
    for world_size in (2, 3):
        several = outcomes[world_size][place]
        assert several.keys() == alone.keys() and len(alone) == 4
        for name, value in alone.items():
            exactly = value if "counted" in name else pytest.approx(value, rel=1e-6)
            assert several[name] == exactly, f"{name} on {world_size} processes"


def test_a_trainer_outside_of_a_job_gets_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: an entry point that changes every Lightning program in the same environment."""
    monkeypatch.delenv("TRAINER_JOB_DIR", raising=False)
    assert for_lightning() == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
def test_one_bit_changes_a_checksum(dtype: torch.dtype) -> None:
    """Guards: a sum of values, in which small differences of large networks get lost."""
    module = nn.ParameterList([torch.ones(1000, dtype=dtype), torch.ones(3, 3, dtype=dtype)])
    before = checksums(module)
    with torch.no_grad():
        module[1].view(-1)[4] *= 1 + torch.finfo(dtype).eps
    assert (checksums(module) != before).tolist() == [False, True]


def test_an_environment_that_lacks_them_is_refused(tmp_path: Path) -> None:
    """Guards: an image that was built before the entry points came, in which all of this is silently off."""
    require_current()
    newer = tmp_path / "pyproject.toml"
    newer.write_text(
        PYPROJECT.read_text().replace("trainer.every_trainer:for_lightning", "trainer.every_trainer:for_all")
    )
    with pytest.raises(UserError, match="docker compose build"):
        require_current(newer)
