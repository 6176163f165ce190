"""Protocol of a backend: prepare a module once, then run it any number of times."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

from numpy.typing import NDArray
from torch import Tensor, nn

from profiler.devices import Device
from profiler.errors import UserError
from profiler.timing.measurement import Measurement, Timer, TimingSettings, measure

__all__ = ["Backend", "Session", "check_precision", "measure_session"]


class Session(Protocol):
    """A module prepared on a backend, with its inputs bound.

    ``with session:`` around the runs sets what the backend needs (a thread count, say) and restores it afterwards; a
    session may be entered repeatedly.
    """

    timer: Timer

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def run(self) -> None:
        """Run once. On a GPU the work may still be queued on return; ``timer`` waits for it."""

    def outputs(self) -> tuple[NDArray[Any], ...]:
        """Run once and copy the outputs to the host, flattened in order; half precision as float32."""

    def describe(self) -> dict[str, Any]:
        """Return provider, versions, threads and options as JSON values."""


class Backend(Protocol):
    """A way to run modules on one device.

    Attributes:
        version: of the software behind it; part of the target of its latencies.
        threads: CPU threads of a workload.
    """

    name: str
    version: str
    precisions: tuple[str, ...]
    device: Device
    threads: int

    def prepare(self, module: nn.Module, inputs: Sequence[Tensor], precision: str = "fp32") -> Session:
        """Prepare a module to run.

        Args:
            module: with real weights, on any device; left unchanged.
            inputs: one CPU tensor per positional argument.
            precision: of weights and floating-point inputs, which are converted.

        Raises:
            UserError: this backend does not run that precision here.
            Exception: anything that keeps this module from running; the profiler stores it as a failure.
        """

    def prepare_many(
        self, items: Sequence[tuple[nn.Module, Sequence[Tensor]]], precision: str = "fp32"
    ) -> list[Callable[[], Session]]:
        """Start preparing several modules, where that is cheaper than one at a time.

        Returns:
            One function per item that finishes the work: returns the session, or raises what ``prepare`` would.
        """


def check_precision(backend: Backend, precision: str) -> None:
    """Raise a :class:`UserError`, with the supported ones, for a precision that the backend does not run here."""
    if precision not in backend.precisions:
        raise UserError(
            f"{backend.name} on {backend.device.name} runs {', '.join(backend.precisions)}, but got {precision!r}"
        )


def measure_session(
    session: Session, settings: TimingSettings | None = None, before_each: Callable[[], None] | None = None
) -> Measurement:
    """Measure the runs of a session by its timer; see :func:`profiler.timing.measurement.measure`."""
    with session:
        return measure(session.run, timer=session.timer, settings=settings, before_each=before_each)
