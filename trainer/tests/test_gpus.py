"""Which GPUs a job takes, what it records of them and the energy they use, against a stub of NVIDIA's library.

The stub (nvml_stub.c) is what the real pynvml, MLflow's GPU monitor and torch load; CUDA finds no device through it.
Each test was seen to fail with what it guards taken out of the code.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import DIGITS, PROJECT, Lab, until

TESTS = Path(__file__).parent

PICK = """
import sys
from trainer.errors import UserError
from trainer.launch import devices
try:
    picked = devices.pick(*sys.argv[1:])
    print(picked.accelerator, picked.count, *picked.gpus)
except UserError as error:
    print(error)
"""

TAGS = "import json; from trainer.provenance.hardware import hardware_tags; print(json.dumps(hardware_tags()))"

# A job that trains on the CPU and has, as far as launch knows, two of the stub's GPUs.
JOB = """
import sys
from trainer.launch import devices, launcher
words = ["fit", "--config", "configs/digits.yaml", "--trainer.max_epochs", "2"]
sys.exit(launcher.launch("gpus", words, devices.Devices("cpu", 1, gpus=(0, 2)), "gpus"))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the stub `libnvidia-ml.so.1`."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler `cc` to make the stub libnvidia-ml.so.1 with")
    folder = tmp_path_factory.mktemp("nvml")
    source, stub = str(TESTS / "nvml_stub.c"), str(folder / "libnvidia-ml.so.1")
    subprocess.run([compiler, "-Wall", "-Werror", "-shared", "-fPIC", "-o", stub, source], check=True)
    return folder


def machine(library: Path, devices: int, **environment: str) -> dict[str, str]:
    """What makes this machine one with so many stub GPUs."""
    path = f"{library}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    return {"LD_LIBRARY_PATH": path, "NVML_STUB_DEVICES": str(devices), **environment}


def python(*words: str, **environment: str) -> str:
    """Run Python in a process of its own, which loads the stub afresh, and return what it prints."""
    command, everything = [sys.executable, *words], {**os.environ, **environment}
    done = subprocess.run(command, env=everything, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def whole_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("visible", "wanted", "picked"),
    [
        (None, "auto", "nvidia 8 0 1 2 3 4 5 6 7"),
        (None, "2", "nvidia 2 0 1"),
        ("3,1", "auto", "nvidia 2 3 1"),
        (" 6 , 5 ", "1", "nvidia 1 6"),
        ("GPU-40000000-0000-0000-0000-000000000000,GPU-2", "auto", "nvidia 2 4 2"),
        ("5,-1,6", "auto", "nvidia 1 5"),
        ("MIG-1,MIG-2", "auto", "nvidia 2"),
        ("3,1", "3", "DEVICES=3, but this machine shows 2 NVIDIA GPU(s); use DEVICES=auto"),
        ("0,8", "auto", "CUDA_VISIBLE_DEVICES=0,8 names 8, which is none of this machine's 8 GPU(s)"),
        ("GPU-9", "auto", "CUDA_VISIBLE_DEVICES=GPU-9 names GPU-9, which is none of this machine's 8 GPU(s)"),
        ("1,1", "auto", "CUDA_VISIBLE_DEVICES=1,1 names 1, a second time; once each, of this machine's 8 GPU(s)"),
    ],
)
def test_a_job_knows_its_own_gpus(library: Path, visible: str | None, wanted: str, picked: str) -> None:
    """Guards: a job on two GPUs of eight that is charged with all, or with others than CUDA gives it."""
    shown = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert python("-c", PICK, "nvidia", wanted, **machine(library, 8, **shown)) == picked


def test_a_lost_gpu_hides_no_other(library: Path, tmp_path: Path) -> None:
    """Guards: one GPU that fell off the bus takes the tags of those behind it, or the job's start, with it."""
    (tmp_path / "lost-0").touch()
    environment = machine(library, 2, NVML_STUB_FOLDER=str(tmp_path), CUDA_VISIBLE_DEVICES="GPU-1")
    assert python("-c", PICK, "nvidia", "auto", **environment) == "nvidia 1 1"
    tags = json.loads(python("-c", TAGS, **environment))
    assert tags["hardware.gpus"] == "2"
    assert (tags["hardware.gpu_0"], tags["hardware.gpu_1"]) == ("GPU is lost", "Stub 1, 16 GiB")


@dataclass(frozen=True)
class Samples:
    """What gpu_samples.py left in a job's spool, and what it printed."""

    series: dict[str, list[tuple[int, float]]]
    """Steps and values of each metric."""
    truth: dict[str, Any]
    terminal: str

    def values(self, key: str) -> list[float]:
        return [value for _, value in self.series[key]]


def sample(folder: Path, gpus: str, *words: str, **environment: str) -> Samples:
    interval = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.25"}
    terminal = python(str(TESTS / "gpu_samples.py"), str(folder), gpus, *words, **interval, **environment)
    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in (folder / "spool.jsonl").read_text().splitlines():
        for metric in json.loads(line)["metrics"]:
            series[metric["key"]].append((metric["step"], metric["value"]))
    return Samples(series, json.loads(terminal.splitlines()[-1]), terminal)


@pytest.fixture(scope="module")
def samples(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """A machine of five GPUs and a job on 0 and 2 to 4: 2 has no energy counter, 3 is lost in mid-run, 4 has neither
    counter nor power."""
    folder = tmp_path_factory.mktemp("samples")
    stub = {"NVML_STUB_FOLDER": str(folder), "NVML_STUB_NO_ENERGY": "24", "NVML_STUB_NO_POWER": "4"}
    return sample(folder, "0,2,3,4", str(folder / "lost-3"), **machine(library, 5, **stub))


def test_only_the_jobs_own_gpus_are_sampled_under_nvmls_numbers(samples: Samples) -> None:
    """Guards: MLflow samples every GPU of the machine for every run, and numbers a job's own from 0."""
    told = {key.split("_")[1] for key in samples.series if key.startswith("system/gpu_")}
    assert told == {"0", "2", "3", "4"}
    for index in (0, 2, 3, 4):
        assert set(samples.values(f"system/gpu_{index}_utilization_percentage")) == {10.0 * (index + 1)}
    assert set(samples.values("system/gpu_2_memory_usage_percentage")) == {50.0}
    assert min(samples.values("system/gpu_2_power_usage_watts")) >= 200


def test_a_gpu_that_vanishes_ends_no_other_series(samples: Samples) -> None:
    """Guards: the loss of one GPU ends the samples of the others and of the CPU, or floods the terminal."""
    steps = [step for step, _ in samples.series["system/cpu_utilization_percentage"]]
    assert steps == list(range(len(steps))) and len(steps) >= 6
    for index in (0, 2):
        for what in ("utilization_percentage", "power_usage_watts", "energy_kwh"):
            assert [step for step, _ in samples.series[f"system/gpu_{index}_{what}"]] == steps, (index, what)
    lost = [step for step, _ in samples.series["system/gpu_3_utilization_percentage"]]
    assert lost == steps[: len(lost)] and 2 <= len(lost) <= len(steps) - 3
    assert samples.truth["said"] == [
        "no system metrics of GPU 4: its energy cannot be read (Not Supported)",
        "no system metrics of GPU 3: GPU is lost",
    ]
    assert "Encountered error" not in samples.terminal, "MLflow's warnings, three for each sample"


def test_energy_is_what_the_gpus_used(samples: Samples) -> None:
    """Guards: wrong units, kWh rounded to one decimal, the counter's whole past, power that is summed up as steps; a
    lost GPU whose energy is forgotten, or one that tells nothing and counts as nothing."""
    for index in ("0", "2"):
        curve = samples.values(f"system/gpu_{index}_energy_kwh")
        least, most = samples.truth["kwh_least"][index], samples.truth["kwh_most"][index]
        assert curve == sorted(curve) and curve[0] < 0.3 * most
        assert 0.999 * least < curve[-1] < 1.001 * most, "the stub's power is read in whole milliwatts"
    at_loss = samples.truth["kwh_at_loss"]["3"]
    assert 0.5 * at_loss < samples.values("system/gpu_3_energy_kwh")[-1] < 1.001 * at_loss
    assert "system/gpu_4_energy_kwh" not in samples.series
    counted = sum(samples.values(f"system/gpu_{index}_energy_kwh")[-1] for index in (0, 2, 3))
    assert samples.series["energy_kwh"] == [(0, pytest.approx(counted, rel=1e-9))]


@pytest.mark.fault
def test_a_driver_that_hangs_does_not_hang_the_end(library: Path, tmp_path: Path) -> None:
    """Guards: a job that never ends since NVML never answers; its energy up to then is kept."""
    environment = machine(library, 1, NVML_STUB_FOLDER=str(tmp_path))
    samples = sample(tmp_path, "0", str(tmp_path / "hang-0"), **environment)
    assert samples.truth["close_seconds"] < 10
    assert samples.truth["said"] == ["a sensor does not answer; the system metrics end without a last sample"]
    assert samples.series["energy_kwh"] == [(0, samples.values("system/gpu_0_energy_kwh")[-1])]


def test_a_jobs_gpus_and_energy_reach_its_run(lab: Lab, library: Path) -> None:
    """Guards: GPUs that are picked and not sampled, energy that stays on disk; a node's name in another place than
    MLflow's; a job on the CPU whose script finds a GPU."""
    settings = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.5", "MLFLOW_SYSTEM_METRICS_NODE_ID": "node-0"}
    process = subprocess.Popen(
        [sys.executable, "-c", JOB],
        cwd=PROJECT,
        env={**lab.environment, **settings, **machine(library, 3)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert worker_environment(process)["CUDA_VISIBLE_DEVICES"] == ""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    run = lab.only_run("gpus")
    metrics = run.data.metrics
    assert {key.split("/")[1] for key in metrics if key.startswith("system/")} == {"node-0"}
    assert {key.split("_")[1] for key in metrics if key.startswith("system/node-0/gpu_")} == {"0", "2"}
    assert metrics["energy_kwh"] == pytest.approx(sum(metrics[f"system/node-0/gpu_{i}_energy_kwh"] for i in (0, 2)))
    assert metrics["energy_kwh"] > 0 and run.data.tags["hardware.gpu_2"] == "Stub 2, 16 GiB"


def test_a_gpu_that_cuda_cannot_use_is_refused(lab: Lab, library: Path) -> None:
    """Guards: NVML and torch, which asks NVML, count GPUs that CUDA cannot use: a page of traceback from Lightning. And
    workers that CUDA gives other GPUs than the ones that launch samples."""
    environment = machine(library, 3, ACCELERATOR="nvidia", CUDA_VISIBLE_DEVICES="GPU-2,GPU-0,GPU-1")
    process = lab.start(*DIGITS, "--devices", "2", "--experiment", "no-cuda", **environment)
    worker = worker_environment(process)
    assert (worker["CUDA_DEVICE_ORDER"], worker["CUDA_VISIBLE_DEVICES"]) == ("PCI_BUS_ID", "2,0")
    output, _ = process.communicate(timeout=120)
    errors = [line for line in output.splitlines() if line.startswith("trainer: error:")]
    assert process.returncode == 2 and len(errors) == 1 and "CUDA can use 0 GPU(s) here, 2 wanted" in errors[0], output
    assert "Traceback" not in output and lab.runs("no-cuda") == []


def worker_environment(process: subprocess.Popen[str]) -> dict[str, str]:
    """The environment of the job's first worker, as soon as there is one."""
    found: list[dict[str, str]] = []

    def look() -> bool:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if child.cmdline()[-1:] == ["trainer.worker"]:
                    found.append(child.environ())
            except psutil.Error:  # it has ended, or is just being started
                continue
        return bool(found)

    until(look)
    return found[0]
