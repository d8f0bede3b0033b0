"""The numbers are the same on any number of processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DistributedSampler, SequentialSampler

from trainer.errors import UserError
from trainer.sharding import ShardedBatchSampler
from trainer.vision import ImageDataModule
from trainer.vision.epoch_sampler import EpochSampler

from .exact_ranks import run


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 7, 64])
def test_evaluation_shards_hold_each_sample_once_in_equally_many_batches(world_size: int, batch_size: int) -> None:
    """Padding counts samples twice (wrong metrics); unequal batch counts hang DDP's broadcast of buffers."""
    for size in range(world_size, 40):
        ranks = [
            list(ShardedBatchSampler(SequentialSampler(range(size)), batch_size, rank, world_size))
            for rank in range(world_size)
        ]
        assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(size))
        assert {len(batches) for batches in ranks} == {len(ranks[0])}
        sampler = ShardedBatchSampler(SequentialSampler(range(size)), batch_size, 0, world_size)
        assert len(sampler) == len(ranks[0])
        longest = max(len(batch) for batches in ranks for batch in batches)
        assert all(batch for batches in ranks for batch in batches)
        assert longest <= max(batch_size, 2)  # 2: with batch_size 1 an uneven shard has no other way


def test_fewer_samples_than_processes_is_refused() -> None:
    """A rank without a batch would hang the others."""
    with pytest.raises(UserError, match="2 samples .* 3 processes"):
        ShardedBatchSampler(SequentialSampler(range(2)), 4, 0, 3)


def test_lightnings_own_sampler_is_refused() -> None:
    """With use_distributed_sampler left on, Lightning would pad and shard a second time, silently."""
    injected = DistributedSampler(range(10), num_replicas=2, rank=0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="use_distributed_sampler: false"):
        ShardedBatchSampler(injected, 4, 0, 2)


def test_training_noise_belongs_to_the_sample() -> None:
    """If noise depended on the rank, one global batch would differ between 1 and 2 processes."""
    alone = list(EpochSampler(range(20), 0, 1, seed=3, first_epoch=4))
    ranks = [list(EpochSampler(range(20), rank, 2, seed=3, first_epoch=4)) for rank in range(2)]
    assert alone == [draw for pair in zip(*ranks, strict=True) for draw in pair]
    assert alone != list(EpochSampler(range(20), 0, 1, seed=3, first_epoch=5))


def test_sampler_never_goes_back_an_epoch() -> None:
    """Lightning announces the finished epoch again on resume, which repeated its order (Lightning #21938)."""
    sampler = EpochSampler(range(20), 0, 1, seed=3, first_epoch=5)
    expected = list(sampler)
    sampler.set_epoch(4)
    assert list(sampler) == expected


def test_fact_N_one_two_and_three_processes_agree(image_root: Path, tmp_path: Path) -> None:
    """Means of per-rank means and padded samples give other metrics on N processes than on one.

    Batches of unequal size weighted equally are wrong on one process already (torchmetrics 1.9.0 did that here). The
    sets hold 23 and 17 samples. With DistributedSampler in place of ShardedBatchSampler, or a batch's mean logged by
    `self.log(..., sync_dist=True)` in place of the metric objects, it is red (tried).
    """
    alone, model = run(image_root, batch_size=12)
    data = ImageDataModule(str(image_root), batch_size=100, num_workers=0, image_size=16)
    data.setup("test")
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        [(images, labels)] = loader
        with torch.no_grad():
            logits = model.eval()(images)
        assert alone[f"{split}_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
        assert alone[f"{split}_acc"] == (logits.argmax(dim=1) == labels).float().mean()
    for world_size in (2, 3):
        out = tmp_path / f"{world_size}.json"
        script = Path(__file__).with_name("exact_ranks.py")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
        subprocess.run([*command, script, image_root, out, str(12 // world_size)], check=True, timeout=300)
        ranks = json.loads(out.read_text())
        assert ranks.keys() == alone.keys() == {f"{s}_{m}" for s in ("train", "val", "test") for m in ("loss", "acc")}
        for name in ("train_acc", "val_acc", "test_acc"):
            assert ranks[name] == alone[name]
        for name in ("train_loss", "val_loss", "test_loss"):
            assert ranks[name] == pytest.approx(alone[name], rel=1e-5)
