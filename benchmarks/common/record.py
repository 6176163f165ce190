"""What the questions share: how they are asked, what an answer is, and the machine that gave it."""

import importlib
import json
import math
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from profiler.devices import Device, cpu_device, local_gpus
from profiler.errors import UserError
from profiler.timing.conditions import read_state

NANO_BASELINE = "basicblock_16_11-21-21-21+fpn_2-5_64+rpn+rcnn_256+128x128"
SMALL_BASELINE = "basicblock_64_11-21-21-21+fpn_2-6_256+rpn+rcnn_1024+512x512"
NUM_CLASSES = 6
"""As many as the generated shapes have."""

_PACKAGES = (
    *("smnas", "torch", "torchvision", "numpy", "pydantic", "pycocotools", "optuna", "pillow", "onnx", "onnxscript"),
    *("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx", "nvidia-ml-py"),
)


class OutOfTimeError(BaseException):
    """A question's time is up. No ``Exception``: what stores a module's failure as data must let it through."""


@dataclass(frozen=True)
class Setting:
    """How a question is asked.

    Attributes:
        device: Where its work runs.
        quick: Whether to look only whether everything runs, on the smallest sizes.
        data: A COCO folder, or ``None`` for the generated shapes.
        scratch: A folder for tables, checkpoints and models; later questions read what earlier ones left there.
        deadline: When the question should be done, by :func:`time.monotonic`.
    """

    device: Device
    quick: bool
    data: Path | None
    scratch: Path
    deadline: float

    @property
    def place(self) -> torch.device:
        """The device as torch names it."""
        return torch.device(self.device.kind, self.device.index) if self.device.kind == "cuda" else torch.device("cpu")

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def synchronize(self) -> None:
        """Wait until the device has done what was asked of it."""
        if self.device.kind == "cuda":
            torch.cuda.synchronize(self.device.index)


@dataclass
class Answer:
    """What a question has found so far, saved after every step: a process that dies leaves what it had.

    Attributes:
        path: The JSON file.
        values: Its content.
    """

    path: Path
    values: dict[str, Any] = field(default_factory=dict)

    def put(self, **values: Any) -> None:
        """Set values by name."""
        self.values |= values
        self._save()

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a row to a list."""
        self.values.setdefault(name, []).append(dict(row))
        self._save()

    def skip(self, part: str, reason: str) -> None:
        """Say which part was left out, and why."""
        self.add("skipped", {"part": part, "reason": reason})

    def _save(self) -> None:
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(plain(self.values), allow_nan=False))
        unfinished.replace(self.path)


def plain(value: Any) -> Any:
    """A value as JSON holds it: NaN becomes null, an infinity text, and floats keep 7 digits."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        if math.isinf(value):
            return "infinite"
        return None if math.isnan(value) else float(f"{value:.7g}")
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def one_line(error: BaseException) -> str:
    """An exception as its class and first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}"[:400] if lines else type(error).__name__


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTimeError` inside the block when it lasts longer, and again every 5 seconds while it goes on.

    A call that never returns to Python can not be stopped so: whoever started the process ends it.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTimeError(f"the time limit of {seconds:.0f} s is over")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1), 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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


def read_machine(device: Device) -> dict[str, Any]:
    """Hardware, system and driver, and the settings of torch that speed hangs on."""
    facts: dict[str, Any] = {
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
            "driver": read_clocks(device).get("driver") or read_state(device).get("driver_version"),
        }
    return facts


def read_package_versions() -> dict[str, str | None]:
    """Versions of what the questions need; null where a package is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def read_clocks(device: Device) -> dict[str, Any]:
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
        except Exception as error:  # noqa: BLE001 - as above; boards and releases differ in what they tell
            found[name] = f"not read: {one_line(error)}"
    return found


def conditions(device: Device) -> dict[str, Any]:
    """The machine's state now: load, and the GPU as NVML and ``nvidia-smi`` see it."""
    return {**read_state(device), **read_clocks(device)}


def largest_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference; infinite where either side is not a number.

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != expected.shape:
        raise ValueError(f"the reference has shape {expected.shape}, but got {found.shape}")
    error = float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))
    return math.inf if math.isnan(error) else error


def random_boxes(batch: int, count: int, side: float, seed: int) -> torch.Tensor:
    """``(batch, count, 4)`` boxes ``xyxy`` inside a square, most of them small."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, count, 2, generator=generator) * side
    size = torch.rand(batch, count, 2, generator=generator) ** 3 * side
    return torch.cat([corner, (corner + size).clamp(max=side)], dim=2)


def median_of(values: list[float] | NDArray[Any]) -> float | None:
    """The median, or ``None`` of nothing."""
    return float(np.median(values)) if len(values) else None
