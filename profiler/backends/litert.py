"""LiteRT (once TensorFlow Lite) with XNNPACK, on a CPU: the runtime of phones and small ARM boards."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, Self

from numpy.typing import NDArray
from torch import Tensor, nn

from profiler.backends.base import Session
from profiler.backends.exporting import ExportingBackend
from profiler.devices import Device
from profiler.errors import BackendUnavailableError
from profiler.graphs.litert import converter_version, import_litert, quiet, to_litert
from profiler.timing.measurement import Timer, WallTimer

__all__ = ["LiteRtBackend", "LiteRtSession", "open_interpreter"]


class LiteRtBackend(ExportingBackend):
    """Converts modules to LiteRT models and runs them in its interpreter.

    Raises:
        BackendUnavailableError: LiteRT is not installed, or the device is no CPU.
    """

    def __init__(self, device: Device, threads: int) -> None:
        import_litert()
        if device.kind != "cpu":
            raise BackendUnavailableError(f"litert runs on cpu, but got {device.name}: --device cpu")
        self.name = "litert"
        self.version = version("ai-edge-litert")
        self.precisions = ("fp32",)
        self.device = device
        self.threads = threads

    def prepare(self, module: nn.Module, inputs: Sequence[Tensor], precision: str = "fp32") -> Session:
        """Convert a module and load it; see :meth:`profiler.backends.base.Backend.prepare`."""
        copied, typed = self._typed(module, inputs, precision)
        feeds = {str(index): tensor.contiguous().numpy() for index, tensor in enumerate(typed)}
        return LiteRtSession(to_litert(copied, typed), feeds, self, {"litert_torch": converter_version()})

    def prepare_many(
        self, items: Sequence[tuple[nn.Module, Sequence[Tensor]]], precision: str = "fp32"
    ) -> list[Callable[[], Session]]:
        """Prepare each module by itself; see :meth:`profiler.backends.base.Backend.prepare_many`."""
        return [partial(self.prepare, *item, precision) for item in items]

    def load(self, model: bytes, feeds: Mapping[str, NDArray[Any]], precision: str = "fp32") -> "LiteRtSession":
        """Open a model; ``feeds`` are in the order of its inputs."""
        return LiteRtSession(model, feeds, self, {})


class LiteRtSession:
    """An interpreter with its inputs bound once."""

    def __init__(
        self, model: bytes, feeds: Mapping[str, NDArray[Any]], backend: LiteRtBackend, facts: Mapping[str, Any]
    ) -> None:
        self.timer: Timer = WallTimer()
        self._facts = {"litert": backend.version, "threads": backend.threads, "delegate": "xnnpack", **facts}
        self._interpreter = open_interpreter(model, backend.threads)
        for spec, array in zip(self._interpreter.get_input_details(), feeds.values(), strict=True):
            self._interpreter.set_tensor(spec["index"], array.astype(spec["dtype"], copy=False))
        self._run = self._interpreter.invoke
        self.run()  # an error in a kernel belongs to preparing, not to timing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self) -> None:
        """Run once on the bound inputs; the outputs stay in the interpreter's memory."""
        self._run()

    def outputs(self) -> tuple[NDArray[Any], ...]:
        """Run once and copy the outputs to the host."""
        self.run()
        return tuple(self._interpreter.get_tensor(spec["index"]) for spec in self._interpreter.get_output_details())

    def describe(self) -> dict[str, Any]:
        """Return versions, threads and the delegate."""
        return dict(self._facts)


def open_interpreter(model: bytes, threads: int) -> Any:
    """Open a LiteRT model for one run at a time.

    Raises:
        ValueError: it is no LiteRT model.
    """
    with quiet():
        interpreter = import_litert().Interpreter(model_content=model, num_threads=threads)
        interpreter.allocate_tensors()
    return interpreter
