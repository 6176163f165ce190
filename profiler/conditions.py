"""What a measurement ran under: versions, load, clocks and throttling, read before and after it."""

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from profiler.devices import Device

__all__ = ["read_state", "read_versions"]

_CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")

_GPU_FIELDS = (
    "clocks.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
    "clocks_throttle_reasons.active",
    "driver_version",
)


def read_versions() -> dict[str, str]:
    """Versions of what a measurement stands on, whichever the backend."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
    }


def read_state(device: Device) -> dict[str, Any]:
    """The state that a measurement may suffer from, now.

    Returns:
        The machine's load averages and core count; for a CPU its governor and clock where the system tells (virtual
        machines rarely do); for a GPU its clocks in MHz, temperature in degrees Celsius, power in watts, active
        throttle reasons and driver, where ``nvidia-smi`` is there. What can not be read is left out.
    """
    state: dict[str, Any] = {"cpus": os.cpu_count()}
    if hasattr(os, "getloadavg"):
        state["loadavg"] = [round(load, 2) for load in os.getloadavg()]
    if device.kind == "cpu":
        state |= _cpu_clock(_CPUFREQ)
    else:
        state |= _gpu_state(device.index)
    return state


def _cpu_clock(folder: Path) -> Mapping[str, Any]:
    facts: dict[str, Any] = {}
    governor, clock = folder / "scaling_governor", folder / "scaling_cur_freq"
    if governor.is_file():
        facts["governor"] = governor.read_text().strip()
    if clock.is_file():
        facts["clock_mhz"] = int(clock.read_text()) / 1000
    return facts


def _gpu_state(index: int) -> Mapping[str, Any]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--id={index}", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in answer.splitlines()[0].split(",")] if answer.strip() else []
    return dict(zip(_GPU_FIELDS, values, strict=False))
