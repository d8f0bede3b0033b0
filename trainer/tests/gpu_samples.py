"""A process of its own that samples stub GPUs into a job's spool, as launch does: `gpu_samples.py FOLDER GPUS [LOSE]`.

FOLDER is the job's, GPUS are NVML indices (`0,2`), LOSE is a file to make in mid-run (nvml_stub.c). It prints one JSON
object: what was said, how long the end took, and the kWh that each GPU truly used: at most up to the loss, and at least
and at most in the whole, since the moments of the first and the last reading are not known to the instant.
"""

import ctypes
import json
import sys
import time
from pathlib import Path

from trainer.launch.system_metrics import SystemMetrics
from trainer.tracking.job import Job, RunRecord

SECONDS = 1.5
"""Before the loss and after it."""


def main() -> None:
    job, gpus = Job(Path(sys.argv[1])), [int(index) for index in sys.argv[2].split(",")]
    job.write_run_record(RunRecord("0" * 32, "0", "x", "x", "mlflow-artifacts:/", 0, ""))
    stub = ctypes.CDLL("libnvidia-ml.so.1")
    stub.stub_millijoules.restype = ctypes.c_double

    def millijoules() -> list[float]:
        return [stub.stub_millijoules(index) for index in gpus]

    def kwh(start: list[float], end: list[float]) -> dict[int, float]:
        return {index: (now - then) / 3.6e9 for index, now, then in zip(gpus, end, start, strict=True)}

    said: list[str] = []
    before_start = millijoules()
    metrics = SystemMetrics(job, gpus, said.append)
    after_start = millijoules()
    metrics.start()
    time.sleep(SECONDS)
    if len(sys.argv) > 3:
        Path(sys.argv[3]).touch()
    loss = millijoules()
    time.sleep(SECONDS)
    before_close, closing = millijoules(), time.monotonic()
    metrics.close()
    result = {
        "said": said,
        "close_seconds": time.monotonic() - closing,
        "kwh_at_loss": kwh(before_start, loss),
        "kwh_least": kwh(after_start, before_close),
        "kwh_most": kwh(before_start, millijoules()),
    }
    print(json.dumps(result))


main()
