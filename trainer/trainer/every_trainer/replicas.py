"""Replicas that differ train on without an error: their parameters are compared after every epoch."""

from typing import Any

import torch
from torch import Tensor, nn


class EqualReplicas:
    """Fails a DDP job whose ranks do not hold the same parameters at the end of an epoch, by checksums of their bits.

    Buffers are left out: BatchNorm's statistics are each rank's own until DDP next broadcasts rank 0's. So is what DDP
    was told to leave to each rank.
    """

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        # Strategies that shard the parameters have nothing to compare; some of them derive from DDPStrategy.
        if trainer.world_size == 1 or type(trainer.strategy).__name__ != "DDPStrategy":
            return
        mine = checksums(pl_module)
        if not len(mine):
            return
        every = [torch.empty_like(mine) for _ in range(trainer.world_size)]
        torch.distributed.all_gather(every, mine)
        ranks = torch.stack(every)
        differ = (ranks != ranks[0]).any(dim=0).tolist()
        left_to_each = set(getattr(pl_module, "_ddp_params_and_buffers_to_ignore", ()))  # torch's own name for it
        named = zip(pl_module.named_parameters(), differ, strict=True)
        names = [name for (name, _), differs in named if differs and name not in left_to_each]
        if names:
            raise RuntimeError(
                f"the replicas differ after epoch {trainer.current_epoch}: {len(names)} parameters, {names[0]} among "
                "them, are not the same on all ranks; were they frozen when the training began (Lightning #20340)?"
            )


def checksums(module: nn.Module) -> Tensor:
    """A checksum of the bits of each parameter: int64 of shape (number of parameters,), on the module's device."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = []
    for parameter in module.parameters():
        values = parameter.detach()
        values = torch.view_as_real(values) if values.is_complex() else values
        sums.append(values.contiguous().view(integers[values.element_size()]).sum(dtype=torch.int64))
    return torch.stack(sums) if sums else torch.empty(0, dtype=torch.int64)
