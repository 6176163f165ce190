"""Every head as one engine, built without a GPU, and files that are no engine for here."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from installed import installed_version
from numpy.typing import NDArray

from kernels.onnx_ops import Operators
from profiler.errors import UserError
from smnas.deploy import export as export_module
from smnas.deploy.export import export_detector
from smnas.deploy.graph import detector_graph
from smnas.inference.engine_file import EngineManifest, manifest_path, read_engine, write_engine
from smnas.inference.metadata import ModelMetadata
from smnas.inference.runtime import load_model
from smnas.models.detector import Detector

NEEDS_RTX = pytest.mark.skipif(
    installed_version("tensorrt_rtx") is None, reason="needs tensorrt_rtx: pip install 'smnas[tensorrt-rtx]'"
)
CAPABILITIES = ("7.5", "8.6", "8.9", "12.0")


@pytest.mark.slow
@NEEDS_RTX
@pytest.mark.parametrize("head", ["garpn+cascade_2_16", "norpn+retina_16_1", "norpn+fcos_16_1"])
def test_every_head_becomes_an_engine_of_what_eager_finds(
    head: str,
    make_checkpoint: Callable[..., Path],
    some_images: list[NDArray[np.uint8]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs: list[onnx.ModelProto] = []

    def kept(detector: Detector, operators: Operators, batch: int) -> onnx.ModelProto:
        graphs.append(detector_graph(detector, operators, batch))
        return graphs[-1]

    monkeypatch.setattr(export_module, "detector_graph", kept)
    # float32 products are what compute capability 7.5 does without, half precision what most engines are built in
    precision = "fp32" if "fcos" in head else "fp16"
    batch = 3 if "garpn" in head else 1
    out = tmp_path / "model.engine"
    report = export_detector(
        make_checkpoint(tmp_path / "checkpoint.pt", f"basicblock_8_1-2+fpn_2-3_16+{head}+64x64"),
        out,
        file_format="tensorrt-rtx",
        precision=precision,
        batch=batch,
        verify_images=some_images[:8],
        capabilities=CAPABILITIES,
    )
    assert report.agreement.compared > 250  # the plain graph, by the same check as the native one
    assert report.agreement.differing <= 2
    content, manifest = read_engine(out)
    assert (manifest.backend, manifest.compute_capabilities) == ("tensorrt_rtx", CAPABILITIES)
    assert manifest.detector == report.metadata
    assert (manifest.detector.precision, manifest.detector.batch) == (precision, batch)
    assert manifest.size_bytes == len(content)
    assert ("Half" in manifest.facts["tensor_types"]) == (precision == "fp16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "model.engine", "model.engine.json"]
    _is_plain(graphs[0].graph)


def _is_plain(graph: onnx.GraphProto) -> None:
    """Standard operators that every backend has, and no size that only a run can tell."""
    operators = {node.op_type for node in graph.node}
    assert not operators & {"NonMaxSuppression", "RoiAlign", "NonZero", "Shape", "Range", "DeformConv"}
    assert {node.domain for node in graph.node} == {""}
    values = (*graph.input, *graph.value_info, *graph.output)
    assert len(values) > 200
    assert all(size.HasField("dim_value") for value in values for size in value.type.tensor_type.shape.dim)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """Bytes that no module loads, with a manifest that fits them."""
    metadata = ModelMetadata("a", ("x",), (1,), 96, 64, "fp16", {"ap": 0.5})
    path = tmp_path / "model.engine"
    version = installed_version("tensorrt_rtx") or "1.0"
    content = b"an engine" * 100
    digest = hashlib.sha256(content).hexdigest()
    write_engine(path, content, EngineManifest(metadata, "tensorrt_rtx", version, ("8.9",), "graph's", digest, 900))
    return path


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
    if installed_version("tensorrt") is None:
        _refused(engine, r"pip install 'smnas\[tensorrt\]'")
