"""``smnas profile --build-engines``: the blocks of two detectors as TensorRT-RTX engines, without a GPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from installed import installed_version

from profiler.engines.store import EngineRefusedError, EngineStore
from smnas.cli.main import application
from smnas.cli.terminal.exit_codes import run
from smnas.latency.engines import real_workloads
from smnas.latency.workloads import detector_workloads
from smnas.space.architecture import Architecture

ARCHITECTURES = [
    "basicblock_8_1-21-21+fpn_2-4_24+norpn+retina_32_1+64x64",
    "resnext4x16_32_1-2+fpn_2-3_32+rpn+cascade_2_64+64x64",
]


def _run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any], str]:
    capsys.readouterr()
    code = run(application("profile"), "smnas-profile", [*map(str, words), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


def test_every_block_comes_once_with_weights() -> None:
    architectures = [Architecture.parse(text) for text in ARCHITECTURES[:1] * 2]
    told: list[int] = []
    workloads = list(real_workloads(architectures, 3, 1, told.append))
    assert not any(workload.is_meta for workload in workloads)
    keys = [workload.key for workload in workloads]
    assert sorted(keys) == sorted({one.key for one in detector_workloads(architectures[0], 3)})
    assert told == [0, 1, 2]


def test_weights_are_the_key_s_and_not_the_detector_s() -> None:
    texts = [ARCHITECTURES[0], ARCHITECTURES[0].replace("retina_32_1", "retina_48_1")]
    first, second = (
        {one.key: one for one in real_workloads([Architecture.parse(text)], 3, 1, lambda _: None)} for text in texts
    )
    shared = first.keys() & second.keys()
    assert any(name.startswith("backbone") for name in (first[key].name for key in shared))
    for key in shared:
        pairs = zip(first[key].module.parameters(), second[key].module.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_another_backend_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = _run(capsys, "--build-engines", tmp_path, "--arch", ARCHITECTURES[0])
    assert code == 2
    assert "--build-engines needs --backend tensorrt_rtx, but got onnxruntime" in error


def test_a_gpu_that_nobody_knows_is_not_every_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--build-engines", tmp_path, "--backend", "tensorrt_rtx", "--gpu", "v1000", "--arch", ARCHITECTURES[0])
    code, _, error = _run(capsys, *words)
    assert code == 2
    assert "data sheets of v100" in error
    assert "but got 'v1000'" in error


def test_its_options_need_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = _run(capsys, "--compute-capability", "8.9", "--arch", ARCHITECTURES[0])
    assert code == 2
    assert "--compute-capability is for --build-engines" in error


@pytest.mark.skipif(
    installed_version("tensorrt_rtx") is None, reason="needs tensorrt_rtx: pip install 'smnas[tensorrt-rtx]'"
)
def test_blocks_become_half_precision_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--build-engines", tmp_path, "--backend", "tensorrt_rtx", "--precision", "fp16", "--classes", "3"]
    words += ["--compute-capability", "8.9", "--workers", "2"]
    for text in ARCHITECTURES:
        words += ["--arch", text]
    code, document, error = _run(capsys, *words)
    assert code == 0, error
    assert (document["compute_capabilities"], document["precision"]) == (["8.9"], "fp16")
    assert document["built"] >= 15
    assert document["failed"] == []
    store = EngineStore(tmp_path)
    built = [one for one in store.manifests() if one.status == "built"]
    assert len(built) == document["built"]
    assert len({one.key for one in built}) == len(built)
    for one in built:
        assert len(store.read(one.request)) == one.size_bytes
        assert (one.request.device, one.request.precision) == ("8.9", "fp16")
        # half by the graph's types, checked while building, and by the builder's own list of the engine's tensors
        if one.facts["dense_layers"]:
            assert one.facts["tensor_types"]["Half"] > one.facts["tensor_types"].get("Float", 0)
    assert sum(one.facts["dense_layers"] > 0 for one in built) >= 12
    # one damaged: refused, and the next run builds this one alone
    path = store.engine_path(built[0].request)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EngineRefusedError, match="damaged"):
        store.read(built[0].request)
    code, document, error = _run(capsys, *words)
    assert code == 0, error
    assert (document["built"], document["cached"]) == (1, len(built) - 1 + len(document["failed"]))
