"""Dispatch of an operator to PyTorch or to a Triton kernel of this package.

The environment variable ``SMNAS_KERNELS``, or ``use`` around a block of code, selects ``torch``, ``triton`` or
``measured``. The default, ``measured``, runs the kernels that a stored result of ``benchmarks/`` shows to be faster and
PyTorch's operators otherwise. Only CUDA tensors reach a kernel. Nothing is decided at import.

Export always traces PyTorch's operators, so the graph is the same whatever the choice.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Literal

import torch
from torch import Tensor

__all__ = ["VARIABLE", "Choice", "can_build", "choice", "interpreted", "on_device_of", "runs_triton", "use"]

Choice = Literal["measured", "torch", "triton"]
"""Implementation of operators that have a kernel."""

VARIABLE = "SMNAS_KERNELS"

_KNOWN: dict[str, Choice] = {"measured": "measured", "torch": "torch", "triton": "triton"}
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_inside: list[Choice] = []  # choices of the open `use` blocks, the innermost last


def choice() -> Choice:
    """Return the choice of the innermost :func:`use`, else of the environment, else ``measured``.

    Raises:
        ValueError: the environment names an unknown choice.
    """
    if _inside:
        return _inside[-1]
    chosen = os.environ.get(VARIABLE, "measured")
    if chosen not in _KNOWN:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(_KNOWN)}, but got {chosen!r}")
    return _KNOWN[chosen]


@contextmanager
def use(kernels: Choice) -> Iterator[None]:
    """Override the environment's choice within a block; a backward pass follows its forward pass, wherever it runs."""
    _inside.append(kernels)
    try:
        yield
    finally:
        _inside.pop()


@cache
def can_build() -> bool:
    """Whether Triton and the C compiler that it needs are installed.

    Otherwise ``measured`` falls back to PyTorch, and ``triton`` is an error.
    """
    compilers = (os.environ.get("CC", ""), "gcc", "clang")  # where Triton looks
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, filter(None, compilers)))


def runs_triton(*tensors: Tensor, pays: bool = False) -> bool:
    """Whether these tensors run through a Triton kernel.

    Args:
        tensors: All inputs of the kernel, on one device.
        pays: Whether a stored result shows this kernel to be faster.

    Raises:
        ImportError: they should, and Triton is not installed.
    """
    chosen = choice()
    if chosen == "torch" or torch.compiler.is_exporting():
        return False
    if chosen == "measured" and not (pays and all(tensor.is_cuda for tensor in tensors) and can_build()):
        return False
    if any(tensor.dtype.is_floating_point and tensor.dtype not in _DTYPES for tensor in tensors):
        return False
    if all(tensor.is_cuda for tensor in tensors):
        if importlib.util.find_spec("triton") is None:
            raise ImportError(f"{VARIABLE}=triton needs Triton: pip install triton")
        return True
    return interpreted() and all(tensor.device.type == "cpu" for tensor in tensors)


def interpreted() -> bool:
    """Whether Triton interprets kernels on CPU tensors, for tests.

    ``TRITON_INTERPRET=1`` must be set before anything, PyTorch included, imports Triton.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Launch on the tensor's device; Triton takes the current one otherwise."""
    elsewhere = tensor.is_cuda and tensor.device.index != torch.cuda.current_device()
    return torch.cuda.device(tensor.device) if elsewhere else nullcontext()
