"""CUDA graphs: a function's kernels, recorded once and replayed as one. Not run yet: on a GPU.

All tensors that the function reads and writes must keep their addresses, and nothing in it may synchronise with the
host, as counting true elements does.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

__all__ = ["Replayed", "record"]

T = TypeVar("T")
_WARM_UPS = 3  # first runs set up, choose and allocate, which must not be recorded


class Replayed(Protocol):
    """A recorded CUDA graph."""

    def replay(self) -> None:
        """Start it on PyTorch's current stream, on the current contents of its tensors."""


def record(run: Callable[[], T], device: torch.device) -> tuple[Replayed, T]:
    """Run a function a few times, then record it.

    Args:
        run: reads and writes the same tensors on every call.
        device: a CUDA device, on whose current stream the tensors are ready.

    Returns:
        The graph, and the recorded result of ``run``: tensors that every replay overwrites.

    Raises:
        RuntimeError: something in it can not be recorded.
    """
    current = torch.cuda.current_stream(device)
    aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    aside.wait_stream(current)
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UPS):
            run()
    current.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # other threads may decode images meanwhile, which must not disturb the recording
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = run()
    return graph, found
