"""TensorRT and TensorRT-RTX as backends: modules become engines, stored on disk, and are timed on their GPU.

Not run yet: on a GPU. Tests run all of it on a stand-in that reads and writes the same addresses.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from profiler.backends.base import Session, check_precision
from profiler.backends.eager import to_numpy
from profiler.backends.engine import Engine
from profiler.devices import Device
from profiler.engines.engine_graph import engine_graphs
from profiler.engines.store import EngineRequest, EngineStore, Manifest, default_folder
from profiler.engines.tensorrt import (
    EngineBuildError,
    build_engine,
    compute_capabilities,
    import_tensorrt,
    needs_convolutions,
)
from profiler.errors import BackendUnavailableError
from profiler.precision import PRECISIONS, typed_copy
from profiler.timing.measurement import CudaTimer, Timer, WallTimer

__all__ = ["EngineBackend", "EngineSession"]


class EngineBackend:
    """Finds every module's engine on disk, or builds it, and runs it.

    Args:
        device: the GPU.
        threads: CPU threads of a workload; an engine needs one.
        name: ``tensorrt_rtx`` or ``tensorrt``.
        store: of engines, those built ahead of time included; the user's own if ``None``.
        place: of tensors; the device if ``None``.

    Raises:
        BackendUnavailableError: the module is not installed, or builds nothing for this device.
    """

    def __init__(
        self,
        device: Device,
        threads: int,
        name: str = "tensorrt_rtx",
        *,
        store: EngineStore | None = None,
        place: torch.device | None = None,
    ) -> None:
        self.trt = import_tensorrt(name)
        if device.kind != "cuda":
            raise BackendUnavailableError(
                f"{name} runs on a CUDA device, but got {device.name}: --device NAME picks one; without a GPU "
                "smnas profile --build-engines DIR builds TensorRT-RTX engines, and --backend onnxruntime runs"
            )
        self.name = name
        self.version = str(self.trt.__version__)
        self.precisions: tuple[str, ...] = tuple(PRECISIONS)
        self.device = device
        self.threads = threads
        self.store = store or EngineStore(default_folder())
        self.place = place or torch.device("cuda", device.index)
        self.capability = _capability(device, self.place)
        known = compute_capabilities(self.trt)
        if known and self.capability not in known:
            raise BackendUnavailableError(
                f"{name} {self.version} builds for compute capabilities {', '.join(known)}, but {device.name} has "
                f"{self.capability}: use --backend tensorrt, onnxruntime-cuda or eager"
            )
        self._ahead = [self.capability] if known else []

    def prepare(self, module: nn.Module, inputs: Sequence[Tensor], precision: str = "fp32") -> "EngineSession":
        """Build or find an engine and load it; see :meth:`profiler.backends.base.Backend.prepare`."""
        (graph,) = self._graphs([(module, inputs)], precision)
        return self._session(graph, inputs, precision)

    def prepare_many(
        self, items: Sequence[tuple[nn.Module, Sequence[Tensor]]], precision: str = "fp32"
    ) -> list[Callable[[], Session]]:
        """Export all modules in one go; see :meth:`profiler.backends.base.Backend.prepare_many`."""
        graphs = self._graphs(items, precision)
        return [partial(self._session, graph, item[1], precision) for graph, item in zip(graphs, items, strict=True)]

    def _graphs(
        self, items: Sequence[tuple[nn.Module, Sequence[Tensor]]], precision: str
    ) -> Sequence[bytes | Exception]:
        check_precision(self, precision)
        return engine_graphs(
            [typed_copy(module, tensors, "fp32", "cpu") for module, tensors in items],
            precision,
            convolutions=needs_convolutions(precision, self.capability),
        )

    def _session(self, graph: bytes | Exception, inputs: Sequence[Tensor], precision: str) -> "EngineSession":
        if isinstance(graph, Exception):
            raise graph
        request = EngineRequest(
            self.name,
            self.version,
            # an engine built for a capability runs on every GPU of it; one tuned here, on this model of GPU
            self.capability if self._ahead else f"{self.capability} {self.device.name}",
            precision,
            hashlib.sha256(graph).hexdigest(),
        )
        manifest = self.store.find(request)
        if manifest is None or manifest.status != "built":
            manifest = self._build(request, graph)
        return EngineSession(self, manifest, self.store.read(request), inputs)

    def _build(self, request: EngineRequest, graph: bytes) -> Manifest:
        timings = self.store.folder / f"{request.backend}-{request.version}-{request.device}.timings".replace(" ", "-")
        built = build_engine(self.trt, graph, request.precision, self._ahead, timings)
        name = f"graph {request.onnx_sha256[:12]}"
        return self.store.add(request, built.content, name=name, key=request.onnx_sha256, facts=built.facts())


class EngineSession:
    """An engine with its inputs loaded, running on its own stream."""

    def __init__(self, backend: EngineBackend, manifest: Manifest, content: bytes, inputs: Sequence[Tensor]) -> None:
        self._backend, self._manifest = backend, manifest
        self._on_gpu = backend.place.type == "cuda"
        self.timer: Timer = CudaTimer(backend.device.index) if self._on_gpu else WallTimer()
        self._entered: list[ExitStack] = []
        kernels = backend.store.engine_path(manifest.request).with_suffix(".kernels")
        self._engine = Engine(backend.trt, content, backend.place, kernels=kernels)
        names = [f"input_{number}" for number in range(1, len(inputs) + 1)]
        given = dict(zip(names, inputs, strict=True))
        self._engine.load({name: given[name].to(kind) for name, (_, kind) in self._engine.inputs.items()})
        with self:
            self.run()  # compiling kernels, and errors in them, belong to preparing, not to timing
            self._wait()
        self._engine.keep_kernels()
        self._layer_types = self._engine.layer_types()
        precision = manifest.request.precision
        if manifest.facts.get("dense_layers") and self._layer_types and precision not in self._layer_types:
            raise EngineBuildError(f"{precision} was requested, but the engine's layers give {self._layer_types}")

    def __enter__(self) -> Self:
        stack = ExitStack()
        stack.enter_context(self._engine.on_stream())
        self._entered.append(stack)
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.pop().close()

    def run(self) -> None:
        """Queue one run on the current stream."""
        self._engine.run()

    def outputs(self) -> tuple[NDArray[Any], ...]:
        """Run once and copy the outputs to the host."""
        with self:
            self.run()
            self._wait()
        return tuple(map(to_numpy, self._engine.results.values()))

    def describe(self) -> dict[str, Any]:
        """Return version, facts about the engine, and the fraction of its layers in the requested precision."""
        layers = sum(self._layer_types.values())
        request = self._manifest.request
        return {
            self._backend.name: self._backend.version,
            "compute_capability": self._backend.capability,
            "onnx_sha256": request.onnx_sha256,
            "engine_sha256": self._manifest.engine_sha256,
            "engine_bytes": self._manifest.size_bytes,
            **self._manifest.facts,
            "layer_types": self._layer_types,
            "layers_in_precision": self._layer_types.get(request.precision, 0) / layers if layers else None,
        }

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize(self._backend.place)


def _capability(device: Device, place: torch.device) -> str:
    if place.type == "cuda":
        return ".".join(map(str, torch.cuda.get_device_capability(place)))
    if device.sheet is None:
        raise ValueError(
            f"the capability of a device without a data sheet comes from CUDA, but its tensors are on {place}"
        )
    return device.sheet.compute_capability
