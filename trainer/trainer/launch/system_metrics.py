"""Samples this machine for as long as the job runs, under the names that MLflow's UI groups as system metrics.

The sensors are MLflow's own. Its loop is not used: it stops for good at the first poll of the server that fails,
and every worker would sample the same machine once more. These samples go through the job's spool instead.
"""

import contextlib
import threading
import time
from collections.abc import Callable

from mlflow.entities import Metric
from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from trainer.tracking import spool
from trainer.tracking.job import Job
from trainer.tracking.store import SYSTEM_METRICS, record_of

INTERVAL_SECONDS = 5.0


class SystemMetrics:
    """Appends a sample of CPU, memory, disk, network and every NVIDIA GPU to the job's spool at fixed intervals.

    Args:
        job: Whose spool; its run must exist.
        say: Called with one line where a sensor fails, once for each reason.
    """

    def __init__(self, job: Job, say: Callable[[str], None]) -> None:
        self._job = job
        self._say = say
        self._said: set[str] = set()
        self._interval = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or INTERVAL_SECONDS
        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(ImportError, RuntimeError):  # no NVIDIA GPU: the tag `hardware.gpus` says so
            self._monitors.append(GPUMonitor())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="system-metrics", daemon=True)
        self._step = 0

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Take a last sample and stop."""
        self._stop.set()
        self._thread.join()
        self._sample()

    def _loop(self) -> None:
        self._stop.wait(min(1.0, self._interval))  # psutil counts the CPU from the first call on
        while not self._stop.is_set():
            self._sample()
            self._stop.wait(self._interval)

    def _sample(self) -> None:
        values: dict[str, float] = {}
        for monitor in self._monitors:
            try:
                monitor.collect_metrics()
                values.update(monitor.aggregate_metrics())
            except Exception as error:  # a sensor that is gone must not end the others
                self._complain(f"no sample of {type(monitor).__name__}: {error}")
            monitor.clear_metrics()
        record = self._job.run_record()
        assert record is not None, "sampling starts once the run exists"
        now = int(time.time() * 1000)
        metrics = [Metric(SYSTEM_METRICS + name, float(value), now, self._step) for name, value in values.items()]
        try:
            spool.append(self._job.spool, record_of(record.run_id, metrics, [], []))
        except OSError as error:
            self._complain(f"a sample of the system metrics could not be kept: {error}")
        self._step += 1

    def _complain(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)
