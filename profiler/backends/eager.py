"""PyTorch's eager mode, on a CPU or a CUDA device."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kernels.dispatch import can_build, choice
from profiler.backends.base import Session, check_precision
from profiler.devices import Device
from profiler.precision import typed_copy
from profiler.timing.measurement import CudaTimer, Timer, WallTimer

__all__ = ["EagerBackend", "EagerSession", "to_numpy", "torch_version"]


class EagerBackend:
    """Runs modules unchanged, under inference mode."""

    def __init__(self, device: Device, threads: int) -> None:
        self.name = "eager"
        self.version = torch_version(device)
        self.precisions: tuple[str, ...] = ("fp32", "fp16", "bf16") if device.kind == "cuda" else ("fp32", "bf16")
        self.device = device
        self.threads = threads

    def prepare(self, module: nn.Module, inputs: Sequence[Tensor], precision: str = "fp32") -> "EagerSession":
        """Copy a module to the device; see :meth:`profiler.backends.base.Backend.prepare`."""
        check_precision(self, precision)
        copied, moved = typed_copy(module, inputs, precision, self.place)
        session = EagerSession(self, copied, moved)
        with session:
            session.run()  # an error in forward belongs to preparing, not to timing
        return session

    @property
    def place(self) -> str:
        """The torch device name."""
        return "cpu" if self.device.kind == "cpu" else f"cuda:{self.device.index}"

    def prepare_many(
        self, items: Sequence[tuple[nn.Module, Sequence[Tensor]]], precision: str = "fp32"
    ) -> list[Callable[[], Session]]:
        """Prepare one at a time: there is nothing to share."""
        return [partial(self.prepare, module, inputs, precision) for module, inputs in items]


def torch_version(device: Device) -> str:
    """Return PyTorch's version and the kernels that replace its operators, whose latencies are another target's."""
    which = {"triton": " with our kernels", "measured": " with measured kernels" if can_build() else ""}
    return f"{torch.__version__}{which.get(choice(), '') if device.kind == 'cuda' else ''}"


class EagerSession:
    """A module on its device."""

    def __init__(self, backend: EagerBackend, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._backend = backend
        self._module: Callable[..., Any] = module
        self._inputs = inputs
        self._threads_outside: list[int] = []
        device = backend.device
        self.timer: Timer = CudaTimer(device.index) if device.kind == "cuda" else WallTimer()

    def __enter__(self) -> Self:
        self._threads_outside.append(torch.get_num_threads())
        torch.set_num_threads(self._backend.threads)
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._threads_outside.pop())

    def run(self) -> None:
        """Run once and drop the outputs."""
        with torch.inference_mode():
            self._module(*self._inputs)

    def outputs(self) -> tuple[NDArray[Any], ...]:
        """Run once and copy the outputs to the host."""
        with torch.inference_mode():
            tensors = [leaf for leaf in tree_leaves(self._module(*self._inputs)) if isinstance(leaf, Tensor)]
        return tuple(to_numpy(tensor) for tensor in tensors)

    def describe(self) -> dict[str, Any]:
        """Return version and threads."""
        facts: dict[str, Any] = {"torch": self._backend.version, "threads": self._backend.threads}
        if self._backend.device.kind == "cuda":
            cudnn: Any = torch.backends.cudnn  # torch leaves it untyped
            facts["cuda"] = torch.version.cuda
            facts["cudnn"] = cudnn.version()
            facts["cudnn_benchmark"] = cudnn.benchmark
            facts["tf32_convolutions"] = cudnn.allow_tf32
            facts["tf32_products"] = torch.backends.cuda.matmul.allow_tf32
        return facts


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """Copy a tensor to the host; half precision as float32."""
    host = tensor.detach().cpu()
    array: NDArray[Any] = (host.float() if host.is_floating_point() else host).numpy()
    return array
