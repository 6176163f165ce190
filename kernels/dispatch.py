"""Dispatch of an operator to PyTorch or to a Triton kernel of this package.

``SMNAS_KERNELS`` in the environment, or ``use`` around a block of code, chooses ``torch``, ``triton`` or ``measured``,
the default: kernels that a stored result of ``benchmarks/`` shows to be faster, PyTorch's operators for the rest.
Tensors on CUDA go through the kernels, and tensors elsewhere (a CPU, ``meta``) through PyTorch. Nothing is decided when
a module is loaded.

While a graph is exported PyTorch's own operators are traced, so that an exported graph knows no operator of ours and is
the same whatever was chosen.
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
_inside: list[Choice] = []  # of the blocks of `use` that are open, the innermost last


def choice() -> Choice:
    """The choice of the innermost :func:`use`, else of the environment, else ``measured``.

    Raises:
        ValueError: the environment names something else.
    """
    if _inside:
        return _inside[-1]
    chosen = os.environ.get(VARIABLE, "measured")
    if chosen not in _KNOWN:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(_KNOWN)}, but got {chosen!r}")
    return _KNOWN[chosen]


@contextmanager
def use(kernels: Choice) -> Iterator[None]:
    """Choose for a block of code, whatever the environment says.

    A backward pass goes the way of its forward pass, wherever it runs.
    """
    _inside.append(kernels)
    try:
        yield
    finally:
        _inside.pop()


@cache
def can_build() -> bool:
    """Whether Triton is here with the C compiler that it starts kernels by.

    Otherwise ``measured`` falls back to PyTorch, and ``triton`` is an error.
    """
    compilers = (os.environ.get("CC", ""), "gcc", "clang")  # where Triton looks
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, filter(None, compilers)))


def runs_triton(*tensors: Tensor, pays: bool = False) -> bool:
    """Whether these tensors go through a Triton kernel.

    Args:
        tensors: All that the kernel would read, on one device.
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
    """Whether Triton runs kernels in its interpreter, on CPU tensors, which is for tests.

    ``TRITON_INTERPRET=1`` must be in the environment before Triton is loaded, by whatever part of PyTorch.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Launch there: Triton takes the current device, wherever the tensors are."""
    elsewhere = tensor.is_cuda and tensor.device.index != torch.cuda.current_device()
    return torch.cuda.device(tensor.device) if elsewhere else nullcontext()
