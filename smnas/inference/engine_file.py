"""A detector as an engine: the engine's bytes in one file, its manifest beside it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from profiler.atomic import write_atomic
from smnas.inference.metadata import ModelFileError, ModelMetadata

__all__ = ["EngineManifest", "manifest_path", "read_engine", "write_engine"]

_FORMAT, _FORMAT_VERSION = "smnas engine", 1
_RULE = "an engine is one that `smnas export` wrote"


@dataclass(frozen=True)
class EngineManifest:
    """Description of an engine.

    Attributes:
        detector: Classes, input size, preprocessing, precision, architecture, AP and versions.
        backend: ``tensorrt_rtx`` or ``tensorrt``.
        backend_version: Of the builder; other versions do not load the engine.
        compute_capabilities: Of the GPUs that it runs on, such as ``8.9``.
        onnx_sha256: Of the source graph.
        facts: From the builder, as JSON values.
    """

    detector: ModelMetadata
    backend: str
    backend_version: str
    compute_capabilities: tuple[str, ...]
    onnx_sha256: str
    engine_sha256: str
    size_bytes: int
    facts: Mapping[str, Any] = field(default_factory=dict)


def manifest_path(engine: Path) -> Path:
    """Return the path of an engine's manifest."""
    return engine.with_name(f"{engine.name}.json")


def write_engine(path: Path, content: bytes, manifest: EngineManifest) -> None:
    """Write both files; the manifest comes last and vouches for the engine."""
    properties = manifest.detector.to_properties()
    document = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        **asdict(manifest),
        "detector": {name: json.loads(value) for name, value in properties.items()},
    }
    write_atomic(path, content)
    write_atomic(manifest_path(path), f"{json.dumps(document, indent=2, sort_keys=True)}\n")


def read_engine(path: Path) -> tuple[bytes, EngineManifest]:
    """Read an engine's bytes and its manifest.

    Raises:
        ModelFileError: One is missing or damaged, or they do not belong together.
    """
    if not path.is_file():
        raise ModelFileError(f"{_RULE}, but there is no file {path}")
    beside = manifest_path(path)
    try:
        document = json.loads(beside.read_bytes())
    except FileNotFoundError:
        raise ModelFileError(f"{_RULE}, with its manifest beside it, but there is no {beside}") from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{_RULE}, but its manifest {beside} is damaged ({error})") from None
    if not isinstance(document, dict) or document.pop("format", None) != _FORMAT:
        raise ModelFileError(f"{_RULE}, but {beside} is the manifest of something else")
    if (version := document.pop("format_version", None)) != _FORMAT_VERSION:
        raise ModelFileError(f"this version reads engines of format {_FORMAT_VERSION}, but {beside} has {version}")
    try:
        properties = {name: json.dumps(value) for name, value in document.pop("detector").items()}
        detector = ModelMetadata.from_properties(properties, str(beside))
        capabilities = tuple(document.pop("compute_capabilities"))
        manifest = EngineManifest(detector, compute_capabilities=capabilities, **document)
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelFileError(f"{_RULE}, but {beside} lacks a property or has one too many ({error})") from None
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest.engine_sha256:
        raise ModelFileError(f"{_RULE}, but {path} is damaged, cut off or not the one that {beside.name} describes")
    return content, manifest
