"""Whether two checkpoints are the same."""

from typing import Any

import torch


def same(one: Any, other: Any) -> bool:
    """Bit for bit, in nested dictionaries and lists."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
