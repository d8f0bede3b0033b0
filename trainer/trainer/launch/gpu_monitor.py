"""Samples one GPU of the job with MLflow's own sensors, and counts the energy that it uses."""

import contextlib
import logging

import pynvml
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

from trainer.launch.energy import EnergyMeter

# MLflow warns of each sensor of a lost GPU at every sample; system_metrics.py says it once.
logging.getLogger("mlflow.system_metrics.metrics.gpu_monitor").setLevel(logging.ERROR)


class JobGPUMonitor(GPUMonitor):
    """MLflow's monitor on one GPU, where MLflow's own takes every GPU of the machine, whoever trains on it.

    Args:
        index: NVML's index of the GPU; its metrics are named `gpu_<index>_…`.
        kwh: What the job had used of it before it was cut off.

    Raises:
        pynvml.NVMLError: NVML does not give the GPU out.
    """

    def __init__(self, index: int, kwh: float = 0.0) -> None:
        BaseMetricsMonitor.__init__(self)  # GPUMonitor's would open every GPU, and fail at any that is lost
        pynvml.nvmlInit()
        self.num_gpus = 1
        self.gpu_handles = [pynvml.nvmlDeviceGetHandleByIndex(index)]
        self._prefix = f"gpu_{index}"
        self.energy = EnergyMeter(self.gpu_handles[0], kwh)
        with contextlib.suppress(pynvml.NVMLError):  # the first sample says it
            self.energy.update()  # counts from here on

    def collect_metrics(self) -> None:
        """Take a sample; what can be read of it is kept even where this raises.

        Raises:
            pynvml.NVMLError: Nothing can be read: the GPU is lost, say.
            RuntimeError: Its energy cannot be read.
        """
        super().collect_metrics()
        if not self._metrics:
            pynvml.nvmlDeviceGetMemoryInfo(self.gpu_handles[0])  # MLflow swallowed why; this raises it again
        try:
            kwh = self.energy.update()
        except pynvml.NVMLError as error:
            raise RuntimeError(f"its energy cannot be read ({error})") from error
        self._metrics["gpu_0_energy_kwh"].append(kwh)

    def aggregate_metrics(self) -> dict[str, float]:
        """The sample under the GPU's own name; energy in kWh, unrounded: MLflow rounds to one decimal."""
        values = super().aggregate_metrics()
        if kwh := self._metrics.get("gpu_0_energy_kwh"):
            values["gpu_0_energy_kwh"] = kwh[-1]
        return {self._prefix + name.removeprefix("gpu_0"): value for name, value in values.items()}
