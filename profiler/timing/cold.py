"""Cold measurements: latency when nothing that a run reads is in a cache.

Timed back to back, a small workload finds its weights and inputs in the cache, which inside a large network they have
left by the time they are needed. Both are facts and neither is the other, so a cold latency is a row of its own: the
same workload under a key that says so.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from profiler.devices import Device
from profiler.errors import UserError
from profiler.workload import Workload

__all__ = ["as_cold", "cache_bytes", "cold_key", "flusher"]

_CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_TIMES_THE_CACHE = 2
"""A buffer of the cache's own size would leave lines behind where replacement is not strictly by age."""


def cold_key(key: str) -> str:
    """The key under which a workload's cold latency is stored."""
    return f"{key}|cold"


def as_cold(workload: Workload) -> Workload:
    """The same workload, to be measured with caches flushed before every run."""
    return replace(workload, name=f"{workload.name} (cold)", key=cold_key(workload.key))


def cache_bytes(device: Device, cpu_caches: Path = _CPU_CACHES) -> int:
    """Size of the device's last cache before its memory.

    Args:
        device: a CPU, or a CUDA device that is here.
        cpu_caches: where Linux describes a processor's caches.

    Raises:
        UserError: the system does not say.
    """
    if device.kind == "cuda":
        properties: Any = torch.cuda.get_device_properties(device.index)
        return int(properties.L2_cache_size)
    texts = [path.read_text(encoding="ascii").strip() for path in cpu_caches.glob("index*/size")]
    sizes = [int(text[:-1]) * _UNITS[text[-1]] for text in texts if text[:-1].isdigit() and text[-1] in _UNITS]
    if not sizes:
        raise UserError(f"cold measurements need the size of the last cache, but {cpu_caches} does not say it")
    return max(sizes)


def flusher(device: Device) -> tuple[Callable[[], None], int]:
    """A function that puts other data into the device's caches, and how many bytes it touches.

    Raises:
        UserError: the size of the caches is not known.
    """
    size = _TIMES_THE_CACHE * cache_bytes(device)
    if device.kind == "cuda":
        on_device = torch.zeros(size, dtype=torch.uint8, device=f"cuda:{device.index}")

        def flush_gpu() -> None:
            on_device.zero_()

        return flush_gpu, size
    buffer = np.zeros(size // 8, dtype=np.int64)

    def flush_cpu() -> None:
        np.add(buffer, 1, out=buffer)

    return flush_cpu, size
