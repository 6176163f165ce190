"""TensorRT and TensorRT-RTX: build engines from typed ONNX graphs.

Both take the precision from the graph (:mod:`profiler.graphs.typed_onnx`); the network is strongly typed. TensorRT-RTX
builds for chosen compute capabilities without a GPU; that ability is detected by attribute, not by version. Only
ordinary TensorRT gets a timing cache: TensorRT-RTX times nothing at build time, and any call of its cache needs a GPU.

Run so far: TensorRT-RTX 1.7.1 without a GPU; with one of compute capability 9.0 (H200), which it has no name for, it
builds but refuses to load the result. Not run: ordinary TensorRT, and any engine (:mod:`profiler.backends.engine`).
"""

import importlib
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from profiler.atomic import write_atomic
from profiler.errors import BackendUnavailableError, UserError
from profiler.graphs.matmuls import matmuls_as_convolutions

__all__ = [
    "NO_FP32_MATMULS",
    "BuiltEngine",
    "EngineBuildError",
    "build_engine",
    "compute_capabilities",
    "import_tensorrt",
    "logger_of",
    "needs_convolutions",
]

_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
_DENSE_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
_DATA_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "FLOAT"}
"""Output type of a dense layer; ``int8`` quantises around the layer."""
_LOGGED_TYPES = {"fp16": "Half", "bf16": "BFloat16", "int8": "Int8"}
NO_FP32_MATMULS = "7.5"
"""Compute capability for which TensorRT-RTX has float32 convolutions, but no matmuls."""


class EngineBuildError(RuntimeError):
    """No engine, or one in another precision than requested; the message is one line."""


@dataclass(frozen=True)
class BuiltEngine:
    """An engine, and facts known without loading it.

    Attributes:
        seconds: build time.
        dense_layers: convolutions and matmuls, all of the requested type; ``int8`` includes those that stay float32,
            but is 0 where nothing is quantised.
        tensor_types: number of tensors by type in the engine's layers, as logged by the builder; empty if it logs none.
        tf32: whether float32 convolutions may use TF32's shorter significand, TensorRT's default.
    """

    content: bytes
    seconds: float
    dense_layers: int
    tensor_types: Mapping[str, int] = field(default_factory=dict)
    tf32: bool = False

    def facts(self) -> dict[str, Any]:
        """Return all but the bytes, as JSON values for a manifest."""
        return {
            "seconds": round(self.seconds, 3),
            "dense_layers": self.dense_layers,
            "tensor_types": dict(self.tensor_types),
            "tf32": self.tf32,
        }


def import_tensorrt(module_name: str) -> Any:
    """Import ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        BackendUnavailableError: it can not be imported; the message names the command that installs it.
    """
    try:
        return importlib.import_module(module_name)
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(
            f"{module_name} is not installed ({error}): pip install 'smnas[{_EXTRAS[module_name]}]'"
        ) from error


def needs_convolutions(precision: str, capability: str) -> bool:
    """Whether matmuls must become convolutions before quantisation, for a GPU without float32 matmuls.

    In float32 :func:`build_engine` converts them itself.
    """
    return precision == "int8" and capability == NO_FP32_MATMULS


def compute_capabilities(trt: Any) -> dict[str, Any]:
    """Return the compute capabilities, such as ``8.9``, that a module builds for without the GPU.

    Empty for a module that builds only for the local GPU.
    """
    members = getattr(trt, "ComputeCapability", None)
    found = {}
    for name in dir(members):
        if number := re.fullmatch(r"SM(\d+)(\d)", name):
            found[f"{number[1]}.{number[2]}"] = getattr(members, name)
    return dict(sorted(found.items(), key=lambda item: float(item[0])))


def build_engine(
    trt: Any, model: bytes, precision: str, capabilities: Sequence[str], timings: Path | None = None
) -> BuiltEngine:
    """Build one engine.

    Args:
        trt: the module, from :func:`import_tensorrt`.
        model: serialised ONNX graph with static shapes, typed by :func:`profiler.graphs.typed_onnx.typed_onnx`.
        precision: of the graph; checked. An ``int8`` graph quantises and dequantises.
        capabilities: compute capabilities that the engine must run on, such as ``8.9``; none means the local GPU.
        timings: timing cache file of a builder that times kernels, read if present and rewritten; unused ahead of time.

    Raises:
        UserError: the module does not build for such a capability.
        EngineBuildError: TensorRT refused the graph, or its convolutions are not in the precision.
    """
    known = compute_capabilities(trt)
    for capability in capabilities:
        if capability not in known:
            able = f"builds for {', '.join(known)}" if known else "builds for the GPU that it runs on only"
            raise UserError(f"{trt.__name__} {able}, but got compute capability {capability!r}")
    start = time.monotonic()
    logger = logger_of(trt)
    logger.errors.clear()
    logger.layers = ""
    builder = trt.Builder(logger)
    builder.max_threads = 1  # builds run side by side, in processes
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if precision == "fp32" and NO_FP32_MATMULS in capabilities:
        model = matmuls_as_convolutions(onnx.load_from_string(model)).SerializeToString()
    if not parser.parse(model):
        logger.errors[:0] = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        raise EngineBuildError(f"the graph can not be read: {logger.one_line()}")
    dense = _dense_layers(trt, network, precision)
    if precision == "int8" and not _quantises(trt, network):
        dense = 0  # a stem, or the last layers of a head: they stay float32
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # lets an inspector list types later
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            if not config.set_compute_capability(known[capability], index):
                raise EngineBuildError(f"compute capability {capability} was refused: {logger.one_line()}")
    timings = None if known else timings
    if timings is not None:
        kept = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
        config.set_timing_cache(kept, ignore_mismatch=False)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineBuildError(f"no engine was built: {logger.one_line()}")
    if timings is not None:
        write_atomic(timings, bytes(config.get_timing_cache().serialize()))
    types = Counter(re.findall(r"Datatype: (\w+)", logger.layers))
    if dense and types and precision in _LOGGED_TYPES and not types[_LOGGED_TYPES[precision]]:
        raise EngineBuildError(f"{precision} was requested, but the engine's tensors are {dict(types)}")
    return BuiltEngine(
        content=bytes(serialized),
        seconds=time.monotonic() - start,
        dense_layers=dense,
        tensor_types=dict(sorted(types.items())),
        tf32=hasattr(trt.BuilderFlag, "TF32") and bool(config.get_flag(trt.BuilderFlag.TF32)),
    )


def _network_flags(trt: Any) -> int:
    # a TensorRT whose networks are all strongly typed may drop the flag
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _dense_layers(trt: Any, network: Any, precision: str) -> int:
    """Count the dense layers and check their precision.

    A request for half precision that yields a float32 engine raises nothing by itself.
    """
    kinds = {getattr(trt.LayerType, name) for name in _DENSE_LAYERS if hasattr(trt.LayerType, name)}
    wanted = getattr(trt.DataType, _DATA_TYPES[precision])
    count = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type not in kinds:
            continue
        count += 1
        if layer.get_output(0).dtype != wanted:
            raise EngineBuildError(
                f"{precision} was requested, but {layer.name} computes in {layer.get_output(0).dtype.name}"
            )
    return count


def _quantises(trt: Any, network: Any) -> bool:
    return any(network.get_layer(index).type == trt.LayerType.QUANTIZE for index in range(network.num_layers))


@cache
def logger_of(trt: Any) -> Any:
    """Return a module's single logger, with its errors as ``errors`` and ``one_line()``."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the module is known when it runs
        """Keeps errors, and the builder's list of the engine's layers."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
            elif message.startswith("Layers:"):
                self.layers = message

        def one_line(self) -> str:
            """Return the first error; the rest follow from it."""
            return " ".join(self.errors[0].split()) if self.errors else "no reason was given"

    return Logger()
