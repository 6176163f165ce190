"""Every head as one engine, built without a GPU, and files that are no engine for here."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from profiler.backends import tensorrt
from profiler.errors import UserError
from smnas.deploy.engine_file import EngineManifest, manifest_path, read_engine, write_engine
from smnas.deploy.export import export_detector
from smnas.deploy.graph import detector_graph
from smnas.deploy.metadata import ModelMetadata
from smnas.deploy.runtime import load_model
from smnas.training.checkpoint import load_detector_checkpoint

NEEDS_RTX = pytest.mark.skipif(
    tensorrt.installed_version("tensorrt_rtx") is None, reason="needs tensorrt_rtx: pip install 'smnas[tensorrt-rtx]'"
)
CAPABILITIES = ("7.5", "8.6", "8.9", "12.0")


@NEEDS_RTX
@pytest.mark.parametrize("name", ["rcnn", "retina", "fcos", "garpn", "cascade"])
def test_every_head_becomes_an_engine_of_what_eager_finds(
    name: str, checkpoint: Callable[[str], Path], pictures: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    precision = "fp32" if name in ("rcnn", "garpn") else "fp16"
    out = tmp_path / "model.engine"
    report = export_detector(
        checkpoint(name),
        out,
        file_format="tensorrt-rtx",
        precision=precision,
        verify_images=pictures[:8],
        capabilities=CAPABILITIES,
    )
    assert report.agreement.compared > 250  # the plain graph, by the same check as the native one
    assert report.agreement.differing <= 2
    content, manifest = read_engine(out)
    assert (manifest.backend, manifest.compute_capabilities) == ("tensorrt_rtx", CAPABILITIES)
    assert manifest.detector == report.metadata
    assert (manifest.detector.precision, manifest.size_bytes) == (precision, len(content))
    types = manifest.facts["tensor_types"]
    assert ("Half" in types) == (precision == "fp16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.engine", "model.engine.json"]


def test_a_plain_graph_has_static_shapes_and_no_operator_of_its_own(checkpoint: Callable[[str], Path]) -> None:
    graph = detector_graph(load_detector_checkpoint(checkpoint("rcnn"))[0], "plain").graph
    operators = {node.op_type for node in graph.node}
    assert not operators & {"NonMaxSuppression", "RoiAlign", "NonZero", "Shape", "Range", "DeformConv"}
    assert all(node.domain == "" for node in graph.node)
    values = (*graph.input, *graph.value_info, *graph.output)
    assert len(values) > 200
    assert all(size.HasField("dim_value") for value in values for size in value.type.tensor_type.shape.dim)
    assert not onnx.helper.printable_graph(graph).count("com.microsoft")


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """Bytes that no module loads, with a manifest that fits them."""
    metadata = ModelMetadata("a", ("x",), (1,), 96, 64, "fp16", {"ap": 0.5})
    path = tmp_path / "model.engine"
    version = tensorrt.installed_version("tensorrt_rtx") or "1.0"
    content = b"an engine" * 100
    digest = "2bd0fa4a5f0e5ff5d9f9bb0a8f7a4d59"
    write_engine(path, content, EngineManifest(metadata, "tensorrt_rtx", version, ("8.9",), digest, _sha(content), 900))
    return path


def _sha(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def _edit(path: Path, **changes: object) -> None:
    document = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps({**document, **changes}))


def _refused(path: Path, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_the_manifest_comes_back(engine: Path) -> None:
    content, manifest = read_engine(engine)
    assert content == b"an engine" * 100
    assert manifest.detector == ModelMetadata("a", ("x",), (1,), 96, 64, "fp16", {"ap": 0.5})
    assert manifest.compute_capabilities == ("8.9",)


def test_damaged_and_foreign_engines_are_one_line(engine: Path) -> None:
    good = engine.read_bytes()
    for content in (b"", good[:-1], good + b"x"):
        engine.write_bytes(content)
        _refused(engine, r"model\.engine is damaged, cut off or not the one")
    engine.write_bytes(good)
    _edit(engine, format_version=7)
    _refused(engine, r"reads engines of format 1, but .* has 7")
    _edit(engine, format_version=1, colour="blue")
    _refused(engine, "lacks a property or has one too many")
    _edit(engine, format="something")
    _refused(engine, "the manifest of something else")
    manifest_path(engine).write_text("[1, 2")
    _refused(engine, "is damaged")
    manifest_path(engine).write_text("[1, 2]")
    _refused(engine, "something else")
    manifest_path(engine).unlink()
    _refused(engine, "manifest beside it, but there is no")
    engine.unlink()
    _refused(engine, "there is no file")


@NEEDS_RTX
def test_engines_of_another_version_or_gpu_are_one_line(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _refused(engine, r"needs a GPU of compute capability 8\.9, but PyTorch finds no GPU here")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    _refused(engine, r"built for compute capability 8\.9, but a GPU has 7\.5")
    _edit(engine, backend_version="0.9.1")
    _refused(engine, r"runs in the version that built it, tensorrt_rtx 0\.9\.1, but .* is installed")


def test_without_the_module_the_command_is_named(engine: Path) -> None:
    _edit(engine, backend="tensorrt")
    if tensorrt.installed_version("tensorrt") is None:
        _refused(engine, r"pip install 'smnas\[tensorrt\]'")
