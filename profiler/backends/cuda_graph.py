"""CUDA graphs: the kernels of a function recorded once and started again as one. Not run yet: on a GPU.

Everything that the function reads and writes must stay where it is, and nothing in it may wait for the GPU, as asking
for the number of true elements does.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

__all__ = ["Replayed", "record"]

T = TypeVar("T")
_WARM_UPS = 3  # what is set up, chosen or allocated in first runs must not be recorded


class Replayed(Protocol):
    """A recorded CUDA graph."""

    def replay(self) -> None:
        """Start it on PyTorch's current stream, on what its tensors hold now."""


def record(run: Callable[[], T], device: torch.device) -> tuple[Replayed, T]:
    """Run a function a few times, then record it.

    Args:
        run: reads and writes the same tensors on every call.
        device: a CUDA device, on whose current stream the tensors are ready.

    Returns:
        The graph, and what ``run`` returned while it was recorded: tensors that every replay writes anew.

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
    # other threads may decode images meanwhile: what they do is none of this recording's
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = run()
    return graph, found
