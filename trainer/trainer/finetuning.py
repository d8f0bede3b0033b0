"""Staged fine-tuning that stays correct under DDP and resume: first the head, later the backbone."""

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from trainer.errors import UserError


class StagedFineTuning(Callback):
    """Trains the head while the backbone is frozen, then both, the backbone at its own learning rate.

    Lightning's BackboneFinetuning fails silently in two ways that this callback does not:

    - Under DDP it freezes before the model is wrapped, so gradients of what it unfreezes are never reduced and the
      replicas diverge (Lightning #20340). Here the model is wrapped again when the set of trained parameters changes.
    - After a resume it leaves the backbone frozen for ever (Lightning #21901). Here what is frozen is a function of
      the epoch, and the optimizer has the same parameter groups in every epoch, so its state always fits.
    """

    def __init__(
        self,
        unfreeze_at_epoch: int = 5,
        backbone_lr: float = 1e-6,
        train_bn: bool = True,
        backbone: str = "backbone",
    ) -> None:
        """
        Args:
            unfreeze_at_epoch: The first epoch (from 0) that trains the backbone.
            backbone_lr: Learning rate of the backbone.
            train_bn: Whether the frozen backbone's BatchNorm layers go on learning, at the head's learning rate, and
                adapt to the new data: what is usually done (and what BackboneFinetuning does). False freezes them too,
                weights and statistics, so no gradient enters the backbone: on a CPU 3 to 4 times faster until
                the unfreezing, at other results.
            backbone: Name of the module's attribute that is the backbone.
        """
        if unfreeze_at_epoch < 0:
            raise UserError(f"StagedFineTuning: unfreeze_at_epoch is {unfreeze_at_epoch}, an epoch is 0 or more")
        if not backbone_lr > 0:
            raise UserError(f"StagedFineTuning: backbone_lr is {backbone_lr}, a learning rate is above 0")
        self.unfreeze_at_epoch = unfreeze_at_epoch
        self.backbone_lr = backbone_lr
        self.train_bn = train_bn
        self.backbone = backbone

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not _is_a(trainer.strategy, "SingleDeviceStrategy", "DDPStrategy"):
            raise UserError(
                f"StagedFineTuning works with one device or with DDP, not with {type(trainer.strategy).__name__}: "
                "set trainer.strategy to ddp"
            )
        self._freeze(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # before the optimizer's state is restored, and in every run the same: the groups of a checkpoint always fit
        if trainer.lr_scheduler_configs:
            raise UserError(
                "StagedFineTuning gives the backbone its own constant learning rate and cannot be used with "
                "a learning rate scheduler: take one of the two out of the configuration"
            )
        self._give_backbone_its_group(trainer.optimizers, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # here, since a resumed job knows its epoch only now and skips on_train_epoch_start when the checkpoint was
        # saved during an epoch
        if not self.train_bn and trainer.current_epoch < self.unfreeze_at_epoch:
            self._module(pl_module).eval()
        self._unfreeze_when_due(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unfreeze_when_due(trainer, pl_module)

    def _unfreeze_when_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        frozen = [p for p in self._module(pl_module).parameters() if not p.requires_grad]
        if trainer.current_epoch < self.unfreeze_at_epoch or not frozen:
            return
        for parameter in frozen:
            parameter.requires_grad = True
        if not self.train_bn:
            self._module(pl_module).train()
        strategy = trainer.strategy
        if _is_a(strategy, "DDPStrategy"):
            # DDP reduces the gradients of what was trainable when it wrapped the model (Lightning #20340): wrap again
            strategy.model = strategy.lightning_module
            strategy.configure_ddp()

    def _freeze(self, pl_module: LightningModule) -> None:
        for parameter in self._own_parameters(pl_module):
            parameter.requires_grad = False

    def _give_backbone_its_group(self, optimizers: list[Optimizer], pl_module: LightningModule) -> None:
        backbone = self._own_parameters(pl_module)
        ours = {id(parameter) for parameter in backbone}
        owners = [o for o in optimizers if any(id(p) in ours for group in o.param_groups for p in group["params"])]
        if len(owners) > 1 or not optimizers:
            raise UserError("StagedFineTuning needs the backbone in one optimizer: check configure_optimizers")
        # none owns it when configure_optimizers passes only what is trainable
        optimizer = (owners or optimizers)[0]
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ours]
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        optimizer.add_param_group({"params": backbone, "lr": self.backbone_lr})

    def _own_parameters(self, pl_module: LightningModule) -> list[nn.Parameter]:
        """The parameters that wait for the unfreezing: all of the backbone, or all but BatchNorm's."""
        return [
            parameter
            for module in self._module(pl_module).modules()
            if not (self.train_bn and isinstance(module, _BatchNorm))
            for parameter in module.parameters(recurse=False)
        ]

    def _module(self, pl_module: LightningModule) -> nn.Module:
        try:
            return pl_module.get_submodule(self.backbone)
        except AttributeError as error:
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise UserError(
                f"StagedFineTuning: {type(pl_module).__name__} has no module {self.backbone!r} (it has {names}): "
                "set the callback's `backbone` argument"
            ) from error


def _is_a(strategy: Strategy, *names: str) -> bool:
    """By name, since `pytorch_lightning` has the same strategies as classes of its own."""
    return any(cls.__name__ in names for cls in type(strategy).__mro__)
