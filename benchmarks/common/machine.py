"""The machine behind an answer: hardware, driver, versions, the commit of the source, and its state."""

import importlib
import os
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.common.answers import ROOT
from profiler.devices import Device, cpu_device, local_gpus, resolve_device
from profiler.errors import UserError
from profiler.timing.conditions import read_state

_PACKAGES = (
    *("smnas", "torchvision", "numpy", "pydantic", "pycocotools", "optuna", "pymoo", "pillow", "onnx", "onnxscript"),
    *("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt_rtx", "nvidia-ml-py"),
)


def provenance(device: Device | None = None, commit: str | None = None) -> dict[str, Any]:
    """Machine, versions and commit of an answer; without a device, this machine's GPU or else its CPU."""
    device = device or resolve_device("local")
    return {"machine": _read_machine(device), "versions": _read_versions(), "commit": commit or _read_commit()}


def find_device(kind: str) -> Device:
    """The CPU or the first GPU.

    Raises:
        UserError: torch sees no GPU.
    """
    if kind == "cpu":
        return cpu_device()
    gpus = local_gpus()
    if not gpus:
        raise UserError(
            f"--device cuda needs a GPU that torch sees, but torch {torch.__version__} (CUDA {torch.version.cuda}) "
            "sees none: use --device cpu"
        )
    return gpus[0]


def conditions(device: Device) -> dict[str, Any]:
    """The machine's state now: load, and the GPU as NVML and ``nvidia-smi`` see it."""
    return {**read_state(device), **_read_clocks(device)}


def one_line(error: BaseException) -> str:
    """An exception as its class and first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}"[:400] if lines else type(error).__name__


def _read_machine(device: Device) -> dict[str, Any]:
    """Hardware, system and driver, and the settings of torch that speed depends on."""
    facts: dict[str, Any] = {
        "device": device.name,
        "cpu": cpu_device().name,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "torch_threads": torch.get_num_threads(),
    }
    if device.kind == "cuda":
        cudnn: Any = torch.backends.cudnn  # torch leaves it untyped
        properties = torch.cuda.get_device_properties(device.index)
        facts |= {
            "gpu": device.name,
            "gpu_memory_mb": properties.total_memory // 2**20,
            "multiprocessors": properties.multi_processor_count,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": cudnn.version(),
            "cudnn_benchmark": cudnn.benchmark,
            "cudnn_tf32": cudnn.allow_tf32,
            "matmul_precision": torch.get_float32_matmul_precision(),
            "driver": _read_clocks(device).get("driver") or read_state(device).get("driver_version"),
        }
    return facts


def _read_versions() -> dict[str, str | None]:
    """Versions of what the questions need; null where a package is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _read_commit() -> str:
    """The commit of the source, ``+changes`` where the working tree differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown: no git here, and no --commit"


def _read_clocks(device: Device) -> dict[str, Any]:
    """Clocks, temperature, power and throttling of a GPU through NVML; where that can not be read, why."""
    if device.kind != "cuda":
        return {}
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return {"nvml": "not read: nvidia-ml-py is not installed"}
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByIndex(device.index)
    except Exception as error:  # noqa: BLE001 - an unread clock must not cost an answer
        return {"nvml": f"not read: {one_line(error)}"}
    readings: dict[str, Callable[[], Any]] = {
        "driver": nvml.nvmlSystemGetDriverVersion,
        "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "sm_max_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    }
    found: dict[str, Any] = {}
    for name, read in readings.items():
        try:
            found[name] = read()
        except Exception as error:  # noqa: BLE001 - as above; boards and releases differ in what they report
            found[name] = f"not read: {one_line(error)}"
    return found
