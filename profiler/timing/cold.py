"""Cold measurements: latency with nothing that a run reads in a cache.

Timed back to back, a small workload finds its weights and inputs in the cache, which they have left by the time a large
network needs them. Both latencies are facts, so a cold one is a row of its own, under a key that says so.
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
"""A buffer of exactly the cache's size would leave lines behind where replacement is not strictly by age."""


def cold_key(key: str) -> str:
    """Return the key of a workload's cold latency."""
    return f"{key}|cold"


def as_cold(workload: Workload) -> Workload:
    """Return the workload under its cold key, to be measured with caches flushed before every run."""
    return replace(workload, name=f"{workload.name} (cold)", key=cold_key(workload.key))


def cache_bytes(device: Device, cpu_caches: Path = _CPU_CACHES) -> int:
    """Return the size of the last-level cache of the CPU, or of a CUDA device of this machine.

    Raises:
        UserError: the system does not report it.
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
    """Return a function that evicts the device's caches, and the number of bytes it touches.

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
