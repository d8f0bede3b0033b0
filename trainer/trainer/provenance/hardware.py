"""The processor, the memory and every NVIDIA GPU of this machine."""

import os
import platform
from pathlib import Path

import psutil
import pynvml


def hardware_tags() -> dict[str, str]:
    """Tags `hardware.*`; GPUs are numbered as NVML numbers them, which is how the system metrics name them."""
    tags = {
        "hardware.cpu": _cpu_model(),
        "hardware.cpus": str(len(os.sched_getaffinity(0))),
        "hardware.memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
    }
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {**tags, "hardware.gpus": "0"}
    try:
        tags["hardware.gpus"] = str(pynvml.nvmlDeviceGetCount())
        tags["hardware.driver"] = str(pynvml.nvmlSystemGetDriverVersion())
        for index in range(int(tags["hardware.gpus"])):
            tags[f"hardware.gpu_{index}"] = _gpu(index)
    except pynvml.NVMLError as error:
        tags["hardware.gpu_error"] = str(error)
    finally:
        pynvml.nvmlShutdown()
    return tags


def _gpu(index: int) -> str:
    """Name and memory; in place of either what NVML answers: one lost GPU must not hide those behind it."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = pynvml.nvmlDeviceGetName(handle)
    except pynvml.NVMLError as error:
        return str(error)
    try:
        return f"{name}, {pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30:.0f} GiB"
    except pynvml.NVMLError as error:  # a GPU that shares the processor's memory has none to tell
        return f"{name}, memory: {error}"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
