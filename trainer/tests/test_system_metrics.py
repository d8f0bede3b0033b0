"""Samples of the machine through the job's whole life."""

import signal
import time
from pathlib import Path

import pytest

from harness import DIGITS, Lab, free_port, until

OUTAGE_SECONDS = 8.0
INTERVAL_SECONDS = 0.5


@pytest.mark.fault
def test_fact_G_system_metrics_go_on_through_an_outage(tmp_path: Path) -> None:
    """Guards: MLflow's sampler ends for good at the first poll of the server that fails, so that a server that is away
    for seconds costs the system metrics of days. (A sampler that polls the server as MLflow's does turns this red.)"""
    port = free_port()
    lab = Lab(tmp_path, f"http://127.0.0.1:{port}")
    assert lab.run("server", "--detach", "--port", str(port)).returncode == 0
    try:
        interval = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": str(INTERVAL_SECONDS)}
        process = lab.start(*DIGITS, "--experiment", "outage", "--trainer.max_epochs", "2000", **interval)
        until(lambda: any("system/cpu_utilization_percentage" in run.data.metrics for run in lab.runs("outage")))
        away = time.time()
        assert lab.run("server", "--stop").returncode == 0
        time.sleep(OUTAGE_SECONDS)
        assert lab.run("server", "--detach", "--port", str(port)).returncode == 0
        back = time.time()
        time.sleep(4 * INTERVAL_SECONDS)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        ended = time.time()
        assert process.returncode == 143 and "is back after" in output, output
        run = lab.only_run("outage")
        for key in ("cpu_utilization_percentage", "disk_usage_percentage", "network_receive_megabytes"):
            points = lab.client.get_metric_history(run.info.run_id, f"system/{key}")
            assert [point.step for point in points] == list(range(len(points))), key
            times = [point.timestamp / 1000 for point in points]
            assert times[0] < away and times[-1] > back
            gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
            assert max(gaps) < 4 * INTERVAL_SECONDS, f"{key}: a gap of {max(gaps):.1f} s"
            assert ended - times[-1] < 10, "the samples end before the job does"
    finally:
        lab.run("server", "--stop")
