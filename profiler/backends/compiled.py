"""``torch.compile`` with the inductor compiler, on a CPU or a CUDA device."""

import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from profiler.backends.base import check_precision
from profiler.backends.eager import EagerBackend, EagerSession, torch_version
from profiler.devices import Device
from profiler.errors import BackendUnavailableError
from profiler.precision import typed_copy

__all__ = ["CompiledBackend", "CompiledSession"]

_COMPILERS = ("c++", "g++", "clang++")


class CompiledBackend(EagerBackend):
    """Compiles modules for the exact shapes that they are timed on.

    Code that the compiler can not trace splits a module into several graphs with plain Python between them, as for any
    user of ``torch.compile``; a session's description has their number.

    Raises:
        BackendUnavailableError: no C++ compiler (CPU) or no Triton (GPU).
    """

    def __init__(self, device: Device, threads: int) -> None:
        super().__init__(device, threads)
        if device.kind == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", ""), *_COMPILERS))):
            raise BackendUnavailableError(
                f"torch.compile needs a C++ compiler ({', '.join(_COMPILERS)}) for {device.name}, but found none: "
                "apt-get install g++"
            )
        if device.kind == "cuda" and not _has_triton():
            raise BackendUnavailableError(f"torch.compile needs Triton for {device.name}: pip install triton")
        self.name = "compile"
        self.version = f"{torch_version(device)} inductor"

    def prepare(self, module: nn.Module, inputs: Sequence[Tensor], precision: str = "fp32") -> "CompiledSession":
        """Compile a copy of a module on the device; see :meth:`profiler.backends.base.Backend.prepare`."""
        check_precision(self, precision)
        copied, moved = typed_copy(module, inputs, precision, self.place)
        return CompiledSession(self, copied, moved)


class CompiledSession(EagerSession):
    """A module compiled on its device."""

    def __init__(self, backend: CompiledBackend, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__(backend, module, inputs)
        self._module: Any = torch.compile(_under_a_code_of_its_own(module), dynamic=False)
        before = _graphs_compiled()
        # A module that would silently run uncompiled (the compiler gives up after some variants) is an error.
        with _dynamo_config().patch(fail_on_recompile_limit_hit=True), self:
            self.run()  # compiles, for the thread count of later runs
        self._graphs = _graphs_compiled() - before

    def describe(self) -> dict[str, Any]:
        """Add the number of graphs to the eager description."""
        return {**super().describe(), "compiler": "inductor", "graphs": self._graphs}


def _under_a_code_of_its_own(module: nn.Module) -> Callable[..., Any]:
    """Return a function that calls the module and shares its code object with no other.

    Compiled graphs are cached by code object: modules of one class would be searched among each other's at every run,
    which takes time, and be refused after some.
    """

    def call(*inputs: Tensor) -> Any:
        return module(*inputs)

    call.__code__ = call.__code__.replace(co_name=f"call_{next(_NUMBERS)}")
    return call


_NUMBERS = itertools.count()


def _graphs_compiled() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _dynamo_config() -> Any:
    from torch._dynamo import config

    return config


def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return bool(has_triton())
