"""Samples this machine for as long as the job runs, under the names that MLflow's UI groups as system metrics.

The sensors are MLflow's own. Its loop is not used: it stops for good at the first poll of the server that fails,
every worker would sample the same machine once more, and it takes every GPU of the machine for the run's own. These
samples go through the job's spool instead.
"""

import threading
import time
from collections.abc import Callable, Sequence

import pynvml
from mlflow.entities import Metric
from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_NODE_ID, MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from trainer.launch.gpu_monitor import JobGPUMonitor
from trainer.tracking.batches import record_of
from trainer.tracking.history import History
from trainer.tracking.job import Job
from trainer.tracking.schemes import SYSTEM_METRICS
from trainer.tracking.spool import SpoolWriter

INTERVAL_SECONDS = 5.0
LAST_SAMPLE_SECONDS = 5.0
"""How long the end of a job waits for the last sample: a driver that hangs must not hang the job."""
ENERGY = "energy_kwh"
"""The metric with the energy in kWh that all of the job's GPUs used while the run was open."""


class SystemMetrics:
    """Appends a sample of CPU, memory, disk, network and the job's own GPUs to the job's spool at fixed intervals.

    Args:
        job: Whose spool; its run must exist.
        gpus: NVML's indices of the job's GPUs.
        say: Called with one line where a sensor fails, once for each sensor and reason.
    """

    def __init__(self, job: Job, gpus: Sequence[int], say: Callable[[str], None]) -> None:
        record = job.run_record()
        assert record is not None, "sampling starts once the run exists"
        self._run_id = record.run_id
        self._spool = SpoolWriter(job.spool, say)
        self._say = say
        self._said: set[str] = set()
        self._interval = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or INTERVAL_SECONDS
        node = MLFLOW_SYSTEM_METRICS_NODE_ID.get()
        self._prefix = SYSTEM_METRICS + (f"{node}/" if node else "")  # as MLflow names them
        self._monitors: dict[str, BaseMetricsMonitor] = {
            "the CPU": CPUMonitor(),
            "the disk": DiskMonitor(),
            "the network": NetworkMonitor(),
        }
        before = History(job)
        self._step = before.next_step(self._run_id, self._prefix)
        self._ends = before.next_step(self._run_id, ENERGY)
        self._gpus: list[JobGPUMonitor] = []
        for index in gpus:
            self._add_gpu(index, before)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="system-metrics", daemon=True)

    def _add_gpu(self, index: int, before: History) -> None:
        used = before.last(self._run_id, f"{self._prefix}gpu_{index}_energy_kwh") or 0.0
        try:
            gpu = JobGPUMonitor(index, used)
        except pynvml.NVMLError as error:
            self._complain(f"no system metrics of GPU {index}: {error}")
            return
        self._gpus.append(gpu)
        self._monitors[f"GPU {index}"] = gpu

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Take a last sample, record the energy and stop."""
        self._stop.set()
        self._thread.join(LAST_SAMPLE_SECONDS)
        if self._thread.is_alive():
            self._complain("a sensor does not answer; the system metrics end without a last sample")
        counted = [gpu.energy.kwh for gpu in self._gpus if gpu.energy.kwh is not None]
        if counted:  # no GPU, no energy: nothing here can measure the rest of the machine
            self._append([Metric(ENERGY, sum(counted), int(time.time() * 1000), self._ends)])
        try:
            self._spool.flush(LAST_SAMPLE_SECONDS)
        except OSError as error:
            self._complain(f"samples of the system metrics are lost: {error}")

    def _loop(self) -> None:
        self._stop.wait(min(1.0, self._interval))  # psutil counts the CPU from the first call on
        while not self._stop.is_set():
            self._sample()
            self._stop.wait(self._interval)
        self._sample()

    def _sample(self) -> None:
        now = int(time.time() * 1000)
        values: dict[str, float] = {}
        for name, monitor in self._monitors.items():
            try:
                monitor.collect_metrics()
            except Exception as error:  # a sensor that is gone must not end the others
                self._complain(f"no system metrics of {name}: {error}")
            values.update(monitor.aggregate_metrics())
            monitor.clear_metrics()
        self._append([Metric(self._prefix + name, float(value), now, self._step) for name, value in values.items()])
        self._step += 1

    def _append(self, metrics: list[Metric]) -> None:
        self._spool.append(record_of(self._run_id, metrics, [], []))

    def _complain(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)
