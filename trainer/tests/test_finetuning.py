"""Staged fine-tuning: equal replicas, a backbone that moves after a resume, and clear errors."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn

from trainer.errors import UserError
from trainer.finetuning import StagedFineTuning

from .finetuning_ranks import CUT_OFF, EPOCHS, UNFREEZE, Net, fit


@pytest.mark.parametrize("train_bn", [True, False])
def test_fact_A_replicas_are_equal_after_every_epoch_and_after_a_resume(tmp_path: Path, train_bn: bool) -> None:
    """Guards: gradients of an unfrozen backbone that DDP does not know are never reduced, and the replicas diverge.

    Without the two lines that wrap the model again, `all` differs between the ranks from the unfreezing on (tried).
    """
    script = Path(__file__).with_name("finetuning_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, script, tmp_path, str(train_bn)], check=True, timeout=300)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    check_stages(ranks[0])


@pytest.mark.parametrize("train_bn", [True, False])
def test_fact_B_resume_continues_as_if_it_had_not_been_cut_off(tmp_path: Path, train_bn: bool) -> None:
    """Guards: BackboneFinetuning's backbone comes back frozen for ever (Lightning #21901).

    With the unfreezing at the one epoch `current_epoch == unfreeze_at_epoch` only, it is red (tried).
    """
    whole, _ = fit(tmp_path / "whole", EPOCHS, train_bn)
    first, _ = fit(tmp_path / "cut", CUT_OFF, train_bn)
    rest, _ = fit(tmp_path / "cut", EPOCHS, train_bn, resume=True)
    assert first + rest == whole
    check_stages(whole)


def test_checkpoint_saved_within_an_epoch_resumes_unfrozen(tmp_path: Path) -> None:
    """Lightning skips on_train_epoch_start for the rest of such an epoch: without on_train_start it trains frozen."""
    fit(tmp_path, CUT_OFF, save_every=20)  # 8 steps per epoch
    rest, _ = fit(tmp_path, EPOCHS, resume=True)
    assert [(entry["epoch"], entry["trainable"]) for entry in rest] == [(2, True), (3, True), (4, True)]


def check_stages(epochs: list[dict[str, Any]]) -> None:
    assert [entry["epoch"] for entry in epochs] == list(range(EPOCHS))
    assert [entry["trainable"] for entry in epochs] == [epoch >= UNFREEZE for epoch in range(EPOCHS)]
    moving = [entry["backbone"] for entry in epochs[UNFREEZE - 1 :]]
    assert len(set(moving)) == len(moving)


def test_frozen_stage_before_the_unfreezing_can_be_resumed(tmp_path: Path) -> None:
    """An optimizer whose groups grow at the unfreezing refuses the checkpoint of another stage."""
    whole, _ = fit(tmp_path / "whole", UNFREEZE + 1)
    first, _ = fit(tmp_path / "cut", UNFREEZE)
    rest, _ = fit(tmp_path / "cut", UNFREEZE + 1, resume=True)
    assert first + rest == whole


def test_frozen_batchnorm_stands_still(tmp_path: Path) -> None:
    """Guards: what is called frozen trains BatchNorm, unless train_bn is False: then nothing in the backbone moves."""
    trained, _ = fit(tmp_path / "trained", 1)
    _, frozen = fit(tmp_path / "frozen", 1, train_bn=False)
    torch.manual_seed(0)
    norm = frozen.backbone[1]
    assert torch.equal(norm.running_mean, torch.zeros(8)) and torch.equal(norm.weight, torch.ones(8))
    assert all(parameter.grad is None for parameter in frozen.backbone.parameters())
    assert trained[0]["batchnorm"] != fit(tmp_path / "frozen2", 1, train_bn=False)[0][0]["batchnorm"]


def test_backbone_has_its_own_learning_rate(tmp_path: Path) -> None:
    """Weights at the head's learning rate would be washed out; BatchNorm stays with the head."""
    _, model = fit(tmp_path, 2)
    head, backbone = model.trainer.optimizers[0].param_groups
    assert (head["lr"], backbone["lr"]) == (1e-2, 1e-3)
    assert [id(p) for p in backbone["params"]] == [id(p) for p in model.backbone[0].parameters()]
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in head["params"]] == [
        "backbone.1.weight",
        "backbone.1.bias",
        "head.weight",
        "head.bias",
    ]


class Scheduled(Net):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Headless(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.backbone = self.backbone, None  # type: ignore[assignment]


@pytest.mark.parametrize(("model", "words"), [(Scheduled, "scheduler"), (Headless, "no module 'backbone' .*body")])
def test_modules_that_do_not_fit_are_refused(model: type[LightningModule], words: str) -> None:
    """Each would train something else than what was asked for, or end in a traceback from inside Lightning."""
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[StagedFineTuning()], logger=False, enable_checkpointing=False
    )
    with pytest.raises(UserError, match=words):
        trainer.fit(model())


@pytest.mark.parametrize("arguments", [{"unfreeze_at_epoch": -1}, {"backbone_lr": 0.0}, {"backbone_lr": float("nan")}])
def test_senseless_arguments_are_refused(arguments: dict[str, Any]) -> None:
    """A negative epoch would silently mean that nothing is ever frozen."""
    with pytest.raises(UserError, match="StagedFineTuning"):
        StagedFineTuning(**arguments)


def test_only_the_trainable_parameters_in_the_optimizer_will_do(tmp_path: Path) -> None:
    """configure_optimizers often filters by requires_grad: the backbone would then never be trained."""

    class Filtered(Net):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=1e-2)

    model = Filtered()
    before = [parameter.clone() for parameter in model.backbone.parameters()]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[StagedFineTuning(unfreeze_at_epoch=0)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(model)
    assert isinstance(model.backbone, nn.Sequential)
    assert not any(torch.equal(a, b) for a, b in zip(before, model.backbone.parameters(), strict=True))


def test_fact_A_it_works_in_a_trainer_of_pytorch_lightning() -> None:
    """Guards: the refusal of BackboneFinetuning sends scripts of `pytorch_lightning` to what refused them too."""
    import pytorch_lightning

    class Old(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            return self.head(self.backbone(batch[0])).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model = Old()
    before = model.backbone.weight.clone()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    staged = StagedFineTuning(unfreeze_at_epoch=1, backbone_lr=0.1)
    trainer = pytorch_lightning.Trainer(accelerator="cpu", max_epochs=2, callbacks=[staged], **quiet)
    trainer.fit(model, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 4)), batch_size=2))
    assert not torch.equal(before, model.backbone.weight)
