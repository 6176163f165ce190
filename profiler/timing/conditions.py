"""Conditions of a measurement, before and after it: versions, load, clocks, throttling."""

import importlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from profiler.devices import Device

__all__ = ["disturbances", "read_state", "read_usage", "read_versions"]

_STAT = Path("/proc/stat")
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
    """Read the versions that matter to every backend."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
    }


def read_state(device: Device) -> dict[str, Any]:
    """Read the state of the machine that may disturb a measurement.

    Returns:
        Load averages and core count; for a CPU its governor and clock where exposed (rarely in virtual machines); for a
        GPU its clocks in MHz, temperature in degrees Celsius, power in watts, active throttle reasons, driver, and
        source: NVML (microseconds; package ``nvidia-ml-py``) or ``nvidia-smi`` (tens of milliseconds). Unreadable
        values are left out.
    """
    state: dict[str, Any] = {"cpus": os.cpu_count()}
    if hasattr(os, "getloadavg"):
        state["loadavg"] = [round(load, 2) for load in os.getloadavg()]
    if device.kind != "cuda":
        state |= _cpu_clock(_CPUFREQ)
    else:
        state |= _gpu_state(device.index)
    return state


def read_usage() -> dict[str, float]:
    """Read counters whose increase tells a round's own work from interference, 0 where the system does not count them.

    Returns:
        ``wall_s``; ``cpu_s``, processor time of all threads of this process; ``steal_s``, taken from all cores by the
        hypervisor; ``preemptions``, involuntary context switches of this process.
    """
    usage: dict[str, float] = {"wall_s": time.perf_counter(), "cpu_s": time.process_time()}
    usage |= {"steal_s": 0.0, "preemptions": 0}
    with suppress(OSError, ValueError, IndexError):
        ticks = int(_STAT.read_text(encoding="ascii").partition("\n")[0].split()[8])
        usage["steal_s"] = ticks / os.sysconf("SC_CLK_TCK")
    with suppress(ImportError):  # not on Windows
        resource: Any = importlib.import_module("resource")
        usage["preemptions"] = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    return usage


def disturbances(
    before: Mapping[str, Any], after: Mapping[str, Any], threads: int = 1, used: Mapping[str, float] | None = None
) -> list[str]:
    """Return one phrase per disturbance; empty for a quiet measurement.

    Args:
        before: as of :func:`read_state`, before the measurement.
        after: the same afterwards.
        threads: busy threads of the measurement itself.
        used: increase of :func:`read_usage`, of a measurement that only computes, on the CPU.
    """
    found = []
    cpus, loads = before.get("cpus") or 1, before.get("loadavg")
    if loads and loads[0] > max(threads, cpus - 1) + _OWN_LOAD:
        found.append(f"load {loads[0]:.1f} on {cpus} cores")
    for name, title in (("clock_mhz", "clock"), ("clocks.sm", "SM clock"), ("clocks.mem", "memory clock")):
        first, last = _number(before.get(name)), _number(after.get(name))
        if first and last and abs(last / first - 1) > _STEADY_CLOCK:
            found.append(f"{title} changed by {last / first - 1:+.0%}")
    if used is not None and used["cpu_s"] < _COMPUTING * used["wall_s"]:
        found.append("waited for a core")
    if used is not None and used["steal_s"] > (1 - _COMPUTING) * used["wall_s"]:
        found.append("a core was taken by the hypervisor")
    reasons = {int(str(state[_THROTTLE]), 16) for state in (before, after) if _is_hexadecimal(state.get(_THROTTLE))}
    found += [f"throttled: {title}" for bit, title in _THROTTLE_BITS.items() if any(bits & bit for bits in reasons)]
    return found


_OWN_LOAD = 0.5
"""Tolerated load beyond the measurement's own: the average still counts work that ended a minute ago."""
_STEADY_CLOCK = 0.05
_COMPUTING = 0.9
"""Least fraction of the wall time that a computing thread has a core."""
_THROTTLE = "clocks_throttle_reasons.active"
_THROTTLE_BITS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
"""NVML's bits that slow a busy GPU, without idle and the user's own clock settings."""


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _is_hexadecimal(value: object) -> bool:
    return isinstance(value, str) and value.startswith("0x")


def _cpu_clock(folder: Path) -> Mapping[str, Any]:
    facts: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # missing, unreadable for this user, or not text
        facts["governor"] = (folder / "scaling_governor").read_text().strip()
    with suppress(OSError, ValueError):  # "<unknown>" on some machines
        facts["clock_mhz"] = int((folder / "scaling_cur_freq").read_text()) / 1000
    return facts


def _gpu_state(index: int) -> Mapping[str, Any]:
    return _read_nvml(index) or _read_nvidia_smi(index)


def _uuid(index: int) -> str:
    """Return the GPU's UUID: CUDA_VISIBLE_DEVICES renumbers PyTorch's devices, but not the driver's."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"


def _read_nvml(index: int) -> Mapping[str, Any]:
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - package, library or driver is missing, each with an exception class of its own
        return {}
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(_uuid(index))
        readers: dict[str, Callable[[], Any]] = {
            "clocks.sm": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "clocks.mem": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature.gpu": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power.draw": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            _THROTTLE: lambda: f"{nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle):#018x}",
            "driver_version": lambda: str(nvml.nvmlSystemGetDriverVersion()),
        }
        facts: dict[str, Any] = {"read_by": "nvml"}
        for field, read in readers.items():
            try:
                facts[field] = read()
            except nvml.NVMLError:  # not every GPU has every sensor
                continue
        return facts
    except nvml.NVMLError:
        return {}
    finally:
        nvml.nvmlShutdown()


def _read_nvidia_smi(index: int) -> Mapping[str, Any]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--id={_uuid(index)}", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in answer.splitlines()[0].split(",")] if answer.strip() else []
    return {"read_by": "nvidia-smi", **dict(zip(_GPU_FIELDS, values, strict=False))} if values else {}
