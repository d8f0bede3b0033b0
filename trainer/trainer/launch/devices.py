"""How many workers a job gets on this machine, and on what."""

import os
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from trainer.errors import UserError

Accelerator = Literal["auto", "nvidia", "cpu"]


@dataclass(frozen=True)
class Devices:
    """What the workers of one node run on."""

    accelerator: Literal["nvidia", "cpu"]
    count: int
    gpus: tuple[int, ...] = ()
    """NVML's indices of the job's own GPUs, local rank 0's first; empty on the CPU and on slices of a GPU (MIG)."""

    def __str__(self) -> str:
        if self.accelerator == "cpu":
            return f"{self.count} CPU process" + ("es" if self.count > 1 else "")
        return f"{self.count} NVIDIA GPU" + ("s" if self.count > 1 else "")

    def environment(self) -> dict[str, str]:
        """What shows the workers these GPUs and no other, numbered as NVML numbers them."""
        if self.accelerator == "cpu":
            return {"CUDA_VISIBLE_DEVICES": ""}  # a user's script with accelerator="auto" would take a GPU
        order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # as NVML counts; CUDA's default puts the fastest first
        return {**order, "CUDA_VISIBLE_DEVICES": ",".join(map(str, self.gpus))} if self.gpus else order


def pick(accelerator: str, devices: str) -> Devices:
    """Decide on the devices, among those that CUDA_VISIBLE_DEVICES shows where it is set.

    Args:
        accelerator: "nvidia" demands GPUs; "cpu" leaves them alone; "auto" takes GPUs where there are any.
        devices: "auto" is every NVIDIA GPU, or one process on CPU; N is that many of either, of GPUs the first N.

    Raises:
        UserError: The machine has not what was asked for, or the words make no sense.
    """
    if accelerator not in ("auto", "nvidia", "cpu"):
        raise UserError(f"ACCELERATOR={accelerator} is unknown; use nvidia, cpu or auto")
    if devices != "auto" and not (devices.isdecimal() and int(devices) > 0):
        raise UserError(f"DEVICES={devices} is neither 'auto' nor a number of at least 1")
    if accelerator == "cpu":
        return Devices("cpu", 1 if devices == "auto" else int(devices))
    gpus, why_none = _nvidia_gpus()
    if not gpus and accelerator == "auto":
        return Devices("cpu", 1 if devices == "auto" else int(devices))
    if not gpus:
        raise UserError(f"no NVIDIA GPU can be used here ({why_none}); to train on the CPU set ACCELERATOR=cpu")
    count = len(gpus) if devices == "auto" else int(devices)
    if count > len(gpus):
        raise UserError(f"DEVICES={devices}, but this machine shows {len(gpus)} NVIDIA GPU(s); use DEVICES=auto")
    return Devices("nvidia", count, tuple(index for index in gpus[:count] if index is not None))


def _nvidia_gpus() -> tuple[list[int | None], str]:
    """NVML's indices of the visible NVIDIA GPUs, None for a slice of one (MIG), and why there are none.

    Asked of NVML, which loads in no time.

    Raises:
        UserError: CUDA_VISIBLE_DEVICES names a GPU that is not there; CUDA would hide it and all behind it.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    named: list[str] | None = None
    if visible is not None:
        # As CUDA reads it: -1 hides what stands behind it.
        named = list(takewhile(lambda word: word not in ("", "-1"), (word.strip() for word in visible.split(","))))
        if not named:
            return [], f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU"
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], f"NVML says: {error}"
    try:
        uuids = [_uuid(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return [], f"NVML says: {error}"
    finally:
        pynvml.nvmlShutdown()
    if named is None or not uuids:
        return list(range(len(uuids))), "NVML counts none"
    if any(word.startswith("MIG-") for word in named):
        return [None] * min(len(named), len(uuids)), ""
    indices: list[int | None] = []
    for word in named:
        index = _index(word, uuids)
        if index is None or index in indices:
            wrong = "which is none of" if index is None else "a second time; once each, of"
            raise UserError(f"CUDA_VISIBLE_DEVICES={visible} names {word}, {wrong} this machine's {len(uuids)} GPU(s)")
        indices.append(index)
    return indices, ""


def _uuid(index: int) -> str:
    import pynvml

    try:
        return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
    except pynvml.NVMLError:  # a GPU that fell off the bus is counted still, and can be named by nothing
        return ""


def _index(word: str, uuids: list[str]) -> int | None:
    """The GPU that one word of CUDA_VISIBLE_DEVICES names: an index, or as much of a UUID as only one GPU has."""
    if word.isdecimal():
        return int(word) if int(word) < len(uuids) else None
    matches = [index for index, uuid in enumerate(uuids) if uuid.startswith(word)] if word.startswith("GPU-") else []
    return matches[0] if len(matches) == 1 else None
