"""Engines on disk: each under a hash of its inputs, with a manifest beside it.

An engine is returned only if its manifest matches the request and its bytes match the manifest's hash.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from profiler.atomic import write_atomic

__all__ = ["EngineRefusedError", "EngineRequest", "EngineStore", "Manifest", "default_folder"]

_FORMAT = 1


class EngineRefusedError(RuntimeError):
    """The engine on disk is not the requested one; the message names the difference."""


@dataclass(frozen=True)
class EngineRequest:
    """Everything that determines an engine's bytes.

    Attributes:
        version: of the backend; other versions do not load its engines.
        device: compute capability, such as ``8.9``.
        onnx_sha256: of the serialised graph, weights included.
    """

    backend: str
    version: str
    device: str
    precision: str
    onnx_sha256: str

    @property
    def digest(self) -> str:
        """File name of the engine."""
        return hashlib.sha256(json.dumps([_FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """Record beside an engine, or instead of one that failed to build.

    Attributes:
        key: of the workload in the latency table.
        reason: of a failure, in one line.
        facts: seconds, proof of precision and the like, as JSON values.
    """

    request: EngineRequest
    status: Literal["built", "failed"]
    name: str
    key: str
    reason: str = ""
    engine_sha256: str = ""
    size_bytes: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


def default_folder() -> Path:
    """Return ``$SMNAS_ENGINES``, or a folder in the user's cache."""
    chosen = os.environ.get("SMNAS_ENGINES")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else cache / "smnas" / "engines"


class EngineStore:
    """A folder of engines. Writes are atomic, so a killed build leaves no partial file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def engine_path(self, request: EngineRequest) -> Path:
        """Return the path of the engine, existing or not."""
        return self.folder / f"{request.digest}.engine"

    def manifest_path(self, request: EngineRequest) -> Path:
        """Return the path of its manifest, existing or not."""
        return self.folder / f"{request.digest}.json"

    def find(self, request: EngineRequest) -> Manifest | None:
        """Return the manifest of a usable engine, or of its failure; ``None`` if it must be built (again)."""
        try:
            manifest = self._manifest(request)
            if manifest.status == "built":
                self._content(manifest)
        except EngineRefusedError:
            return None
        return manifest

    def read(self, request: EngineRequest) -> bytes:
        """Read the engine's bytes.

        Raises:
            EngineRefusedError: the engine is missing, failed, was built from something else, or is damaged.
        """
        manifest = self._manifest(request)
        if manifest.status != "built":
            raise EngineRefusedError(f"the engine of {manifest.name} was not built: {manifest.reason}")
        return self._content(manifest)

    def add(self, request: EngineRequest, content: bytes, *, name: str, key: str, facts: dict[str, Any]) -> Manifest:
        """Store an engine; the manifest, written last, vouches for it."""
        digest = hashlib.sha256(content).hexdigest()
        manifest = Manifest(request, "built", name, key, "", digest, len(content), facts)
        write_atomic(self.engine_path(request), content)
        self._write_manifest(manifest)
        return manifest

    def add_failure(self, request: EngineRequest, reason: str, *, name: str, key: str) -> Manifest:
        """Store the reason for a missing engine."""
        manifest = Manifest(request, "failed", name, key, reason)
        self._write_manifest(manifest)
        return manifest

    def manifests(self) -> Iterator[Manifest]:
        """Iterate over all manifests, failures included, by file name."""
        for path in sorted(self.folder.glob("*.json")):
            yield _parse(path)

    def _manifest(self, request: EngineRequest) -> Manifest:
        manifest = _parse(self.manifest_path(request))
        if manifest.request != request:
            wanted, found = asdict(request), asdict(manifest.request)
            differing = ", ".join(f"{name} {found[name]!r}" for name in wanted if wanted[name] != found[name])
            raise EngineRefusedError(f"the engine must be built from {request}, but its manifest says {differing}")
        return manifest

    def _content(self, manifest: Manifest) -> bytes:
        path = self.engine_path(manifest.request)
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise EngineRefusedError(f"{path.name} is gone") from error
        if hashlib.sha256(content).hexdigest() != manifest.engine_sha256:
            raise EngineRefusedError(f"{path.name} is damaged: its hash is not the one in its manifest")
        return content

    def _write_manifest(self, manifest: Manifest) -> None:
        text = json.dumps({"format": _FORMAT, **asdict(manifest)}, indent=2, sort_keys=True)
        write_atomic(self.manifest_path(manifest.request), f"{text}\n")


def _parse(path: Path) -> Manifest:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise EngineRefusedError(f"there is no {path.name}") from error
    except ValueError as error:
        raise EngineRefusedError(f"{path.name} is no manifest: {error}") from error
    try:
        if document.pop("format") != _FORMAT:
            raise EngineRefusedError(f"{path.name} is of another format than {_FORMAT}")
        return Manifest(**{**document, "request": EngineRequest(**document["request"])})
    except (AttributeError, KeyError, TypeError) as error:
        raise EngineRefusedError(f"{path.name} is no manifest: {type(error).__name__} {error}") from error
