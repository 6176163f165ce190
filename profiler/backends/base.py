"""Protocol of a backend: prepare a module once, then run it any number of times."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from numpy.typing import NDArray
from torch import Tensor, nn

from profiler.devices import Device
from profiler.errors import UserError
from profiler.timing.measurement import Timer

__all__ = ["Backend", "Session", "check_precision"]


class Session(Protocol):
    """A module made ready on a backend, with its inputs bound.

    Runs belong inside ``with session:``, which sets what the backend needs around them (a thread count, say) and puts
    it back; a session may be entered any number of times.
    """

    timer: Timer

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self) -> None:
        """One run. On a GPU the work may still be queued when this returns: ``timer`` knows how to wait for it."""

    def outputs(self) -> tuple[NDArray[Any], ...]:
        """Run once and copy the outputs to the host, flattened in order; half precisions as float32."""

    def describe(self) -> dict[str, Any]:
        """Details of what runs: provider, versions, threads, options, as JSON values."""


class Backend(Protocol):
    """A way to run modules on one device.

    Attributes:
        name: as users type it.
        version: of the software behind it; a row of the latency table holds for this version only.
        precisions: those that it runs on its device.
        device: where it runs.
        threads: CPU threads that a workload may use.
    """

    name: str
    version: str
    precisions: tuple[str, ...]
    device: Device
    threads: int

    def prepare(self, module: nn.Module, inputs: Sequence[Tensor], precision: str = "fp32") -> Session:
        """Make a module ready to run.

        Args:
            module: with real weights, on any device; it is left as it was.
            inputs: one tensor per positional argument, on the CPU.
            precision: one of ``precisions``; weights and floating-point inputs are converted to it.

        Raises:
            UserError: this backend does not run that precision here.
            Exception: whatever keeps this module from running; the profiler stores it as a failure.
        """

    def prepare_many(
        self, items: Sequence[tuple[nn.Module, Sequence[Tensor]]], precision: str = "fp32"
    ) -> list[Callable[[], Session]]:
        """Start making several modules ready, where that is cheaper than one at a time.

        Returns:
            One function per item that finishes the work: it returns the session, or raises what ``prepare`` would.
        """


def check_precision(backend: Backend, precision: str) -> None:
    """Refuse a precision that the backend does not run on its device.

    Raises:
        UserError: with the precisions that it does run.
    """
    if precision not in backend.precisions:
        raise UserError(
            f"{backend.name} on {backend.device.name} runs {', '.join(backend.precisions)}, but got {precision!r}"
        )
