"""How many workers a job gets on this machine, and on what."""

import os
from dataclasses import dataclass
from typing import Literal

from trainer.errors import UserError

Accelerator = Literal["auto", "nvidia", "cpu"]


@dataclass(frozen=True)
class Devices:
    """What the workers of one node run on."""

    accelerator: Literal["nvidia", "cpu"]
    count: int

    def __str__(self) -> str:
        if self.accelerator == "cpu":
            return f"{self.count} CPU process" + ("es" if self.count > 1 else "")
        return f"{self.count} NVIDIA GPU" + ("s" if self.count > 1 else "")


def pick(accelerator: str, devices: str) -> Devices:
    """Decide on the devices.

    Args:
        accelerator: "nvidia" demands GPUs; "cpu" leaves them alone; "auto" takes GPUs where there are any.
        devices: "auto" is every NVIDIA GPU, or one process on CPU; N is that many of either.

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
    if gpus == 0 and accelerator == "auto":
        return Devices("cpu", 1 if devices == "auto" else int(devices))
    if gpus == 0:
        raise UserError(f"no NVIDIA GPU can be used here ({why_none}); to train on the CPU set ACCELERATOR=cpu")
    count = gpus if devices == "auto" else int(devices)
    if count > gpus:
        raise UserError(f"DEVICES={devices}, but this machine shows {gpus} NVIDIA GPU(s); use DEVICES=auto")
    return Devices("nvidia", count)


def _nvidia_gpus() -> tuple[int, str]:
    """The number of visible NVIDIA GPUs, and why it is 0 where it is. Asked of NVML, which loads in no time."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [device for device in visible.split(",") if device.strip() and device.strip() != "-1"]
        if not named:
            return 0, f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU"
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return 0, f"NVML says: {error}"
    try:
        count = pynvml.nvmlDeviceGetCount()
    finally:
        pynvml.nvmlShutdown()
    return (count if visible is None else min(count, len(named))), "NVML counts none"
