"""Devices: resolve a name on this machine; data sheets of common GPUs.

Torch is imported only when a GPU is looked up.
"""

import importlib
import os
import platform
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from profiler.errors import BackendUnavailableError, UserError

__all__ = [
    "Device",
    "DeviceNotPresentError",
    "GpuSheet",
    "cpu_device",
    "gpu_sheets",
    "import_openvino",
    "local_gpus",
    "matching_names",
    "named_sheet",
    "openvino_core",
    "openvino_devices",
    "resolve_device",
]


@dataclass(frozen=True)
class GpuSheet:
    """A GPU's data sheet.

    Attributes:
        name: short name for users, such as ``v100``.
        match: words that identify it in the driver's device name.
        compute_capability: such as ``7.0``.
        memory_gb_s: memory bandwidth in 10^9 bytes per second.
        l2_mib: second-level cache.
        fp32_tflops: dense peak of ordinary cores; ``fp16_tflops`` and ``int8_tops`` (if any) of tensor cores.
    """

    name: str
    title: str
    match: tuple[str, ...]
    compute_capability: str
    multiprocessors: int
    boost_mhz: float
    memory_gb_s: float
    l2_mib: float
    fp32_tflops: float
    fp16_tflops: float
    int8_tops: float | None = None

    def is_called(self, device_name: str) -> bool:
        """Match a driver's device name: ``Tesla V100-SXM2-16GB`` is ``v100``, ``A100`` is no ``a10``."""
        return any(
            re.search(rf"(?<!\w){re.escape(word)}(?!\w)(?! (?:Ti|D|Laptop)\b)", device_name, re.IGNORECASE)
            for word in self.match
        )


@dataclass(frozen=True)
class Device:
    """A device of this machine.

    Attributes:
        name: the driver's or the processor's own name, as in the latency table.
        kind: ``openvino`` for what OpenVINO alone runs on: Intel's GPUs and NPUs.
        index: of the GPU on its machine.
        sheet: data sheet of a known GPU.
        place: OpenVINO's name of it, such as ``GPU.1``.
    """

    name: str
    kind: Literal["cpu", "cuda", "openvino"]
    index: int = 0
    sheet: GpuSheet | None = None
    place: str = ""


class DeviceNotPresentError(UserError):
    """A known GPU that this machine does not have; ``sheet`` is its data sheet."""

    def __init__(self, sheet: GpuSheet, present: Sequence[str]) -> None:
        self.sheet = sheet
        here = ", ".join(present) if present else "no GPU"
        super().__init__(
            f"latencies of {sheet.name} are measured on it, but this machine has {here}: run there, give `smnas "
            f"search` or `smnas profile` a table from there by --table FILE, take a roofline by `smnas profile "
            f"--estimate`, or use --device {'local' if present else 'cpu'}"
        )


@cache
def gpu_sheets() -> Mapping[str, GpuSheet]:
    """Return all known GPUs by name."""
    text = resources.files("profiler").joinpath("devices.toml").read_text(encoding="utf-8")
    sheets: dict[str, GpuSheet] = {}
    for name, values in tomllib.loads(text).items():
        figures: dict[str, Any] = {**values, "match": tuple(values["match"])}
        sheets[name] = GpuSheet(name=name, **figures)
    return sheets


def resolve_device(name: str) -> Device:
    """Find a device of this machine by a user's name.

    Args:
        name: ``cpu``; ``local`` (the first GPU, else the CPU); a GPU with a data sheet; or ``gpu``, ``gpu.1``, ``npu``,
            as OpenVINO names Intel's.

    Raises:
        UserError: unknown name.
        DeviceNotPresentError: a known GPU that is not in this machine.
    """
    wanted = _as_listed(name)
    if wanted == "cpu":
        return cpu_device()
    if _OPENVINO_NAME.fullmatch(wanted):
        import_openvino()  # missing, it finds nothing
        found = {device.place.lower(): device for device in openvino_devices()}
        if wanted not in found:
            raise UserError(f"OpenVINO's devices here are {', '.join(['cpu', *found])}, but got {name!r}")
        return found[wanted]
    gpus = local_gpus()
    if wanted == "local":
        return gpus[0] if gpus else cpu_device()
    sheet = named_sheet(name)
    if sheet is None:
        raise UserError(f"a device is one of cpu, local, gpu, npu, {', '.join(gpu_sheets())}, but got {name!r}")
    for gpu in gpus:
        if sheet.is_called(gpu.name):
            return gpu
    raise DeviceNotPresentError(sheet, [gpu.name for gpu in gpus])


def named_sheet(name: str) -> GpuSheet | None:
    """Return the data sheet of a user's name, such as ``V100`` or ``RTX 4090``; ``None`` if there is none."""
    return gpu_sheets().get(_as_listed(name))


def _as_listed(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def matching_names(sheet: GpuSheet, device_names: Sequence[str]) -> tuple[str, ...]:
    """Filter device names, such as a latency table's, by the GPU of a data sheet."""
    return tuple(name for name in device_names if sheet.is_called(name))


def local_gpus() -> tuple[Device, ...]:
    """List the CUDA devices of this machine, as torch sees them."""
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(_gpu(torch.cuda.get_device_name(index), index) for index in range(torch.cuda.device_count()))


def openvino_devices() -> tuple[Device, ...]:
    """List what only OpenVINO runs on; empty where it is not installed. Not run yet on any."""
    try:
        core = openvino_core()
    except BackendUnavailableError:
        return ()
    places = [place for place in core.available_devices if _OPENVINO_NAME.fullmatch(place.lower())]
    return tuple(Device(str(core.get_property(one, "FULL_DEVICE_NAME")), "openvino", place=one) for one in places)


_OPENVINO_NAME = re.compile(r"(gpu|npu)(\.\d+)?")


def import_openvino() -> Any:
    """Import OpenVINO, without the usage statistics that its package sends when it is imported.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if that package were missing
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise BackendUnavailableError(f"openvino is not installed ({error}): pip install 'smnas[openvino]'") from error


def openvino_core() -> Any:
    """This process's ``openvino.Core``, which lives as long as the process.

    Its CPU plugin gives the thread that loads it a stack for signals and frees it with the last core, in whichever
    thread the garbage collector runs: the first thread's next Ctrl-C would be a segmentation fault.

    Raises:
        BackendUnavailableError: OpenVINO is not installed.
    """
    return _core_of(import_openvino())


@cache
def _core_of(runtime: Any) -> Any:
    return runtime.Core()


def cpu_device() -> Device:
    """Return this machine's processor."""
    return Device(cpu_name(Path("/proc/cpuinfo")), "cpu")


def cpu_name(cpuinfo: Path) -> str:
    """Return the processor's name: model name with family and model number, since virtual machines shorten the former.

    Without a usable ``cpuinfo`` (Linux's ``/proc/cpuinfo``) Python's ``platform`` module supplies it.
    """
    facts: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, separator, value = line.partition(":")
            if separator:
                facts.setdefault(name.strip(), value.strip())
    if "model name" in facts:
        numbers = [f"{word} {facts[field]}" for word, field in _NUMBERS if facts.get(field, "").isdigit()]
        return f"{facts['model name']} ({' '.join(numbers)})" if numbers else facts["model name"]
    if "CPU part" in facts:
        return f"{platform.machine()} implementer {facts.get('CPU implementer', '?')} part {facts['CPU part']}"
    return platform.processor() or platform.machine() or os.name


_NUMBERS = (("family", "cpu family"), ("model", "model"))


def _gpu(name: str, index: int) -> Device:
    sheet = next((sheet for sheet in gpu_sheets().values() if sheet.is_called(name)), None)
    return Device(name, "cuda", index, sheet)
