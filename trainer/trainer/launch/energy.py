"""The electrical energy that a GPU uses: from its own counter or, where it has none, from its power over time."""

import time
from typing import Any

import pynvml

MILLIJOULES_PER_KWH = 3.6e9


class EnergyMeter:
    """Counts one GPU's energy, whoever uses the GPU, from the first `update()` on.

    A GPU since Volta counts its energy itself. Of the others the power is integrated by the trapezoid rule, so what
    they draw between two updates counts as if it changed evenly.

    Args:
        handle: NVML's handle of the GPU.
        kwh: Where the count starts, in kWh.
    """

    def __init__(self, handle: Any, kwh: float = 0.0) -> None:
        self._handle = handle
        self._counter: int | None = None
        """Millijoules since the driver was loaded."""
        self._power: tuple[float, int] | None = None
        """Seconds and milliwatts of the last update."""
        self._start = kwh
        self.kwh: float | None = None
        """kWh since the first update, and those it started at; None while there was none.

        What was counted outlives a GPU that is lost."""

    def update(self) -> float:
        """Count up to now.

        Returns:
            kWh since the first update, and those it started at.

        Raises:
            pynvml.NVMLError: The GPU tells neither energy nor power now; where it does again, the gap is counted.
        """
        try:
            millijoules = self._from_counter()
        except pynvml.NVMLError:
            if self._counter is not None:
                raise
            millijoules = self._from_power()
        self.kwh = (self._start if self.kwh is None else self.kwh) + millijoules / MILLIJOULES_PER_KWH
        return self.kwh

    def _from_counter(self) -> float:
        """Millijoules since the last update."""
        counter = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        before, self._counter = self._counter, counter
        if before is None:
            return 0.0
        return counter - before if counter >= before else counter  # a reset of the GPU starts it from 0

    def _from_power(self) -> float:
        """Millijoules since the last update."""
        milliwatts = pynvml.nvmlDeviceGetPowerUsage(self._handle)
        now = time.monotonic()
        before, self._power = self._power, (now, milliwatts)
        if before is None:
            return 0.0
        return (before[1] + milliwatts) / 2 * (now - before[0])
