"""Engines on disk: only what was asked for and is whole is handed out."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from profiler.engines.store import EngineRefusedError, EngineRequest, EngineStore

REQUEST = EngineRequest("tensorrt_rtx", "1.7.1.116", "8.9", "fp16", "ab" * 32)
CONTENT = b"engine " * 1000


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    store = EngineStore(tmp_path / "engines")
    store.add(REQUEST, CONTENT, name="block", key="Block-1|1x8", facts={"seconds": 0.5})
    return store


def test_an_engine_comes_back_with_its_manifest(store: EngineStore) -> None:
    assert store.read(REQUEST) == CONTENT
    found = store.find(REQUEST)
    assert found is not None
    assert (found.status, found.name, found.key, found.size_bytes) == ("built", "block", "Block-1|1x8", len(CONTENT))
    assert found.facts == {"seconds": 0.5}
    document = json.loads(store.manifest_path(REQUEST).read_text())
    assert document["engine_sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert document["request"] == {
        "backend": "tensorrt_rtx",
        "version": "1.7.1.116",
        "device": "8.9",
        "precision": "fp16",
        "onnx_sha256": "ab" * 32,
    }
    assert list(store.manifests()) == [found]


@pytest.mark.parametrize("change", [{"device": "8.6"}, {"precision": "fp32"}, {"version": "2"}, {"onnx_sha256": "cd"}])
def test_anything_else_is_another_engine(store: EngineStore, change: dict[str, str]) -> None:
    other = replace(REQUEST, **change)
    assert store.find(other) is None
    with pytest.raises(EngineRefusedError, match="there is no"):
        store.read(other)
    # under the other's name, it is refused by what its manifest says
    store.manifest_path(REQUEST).rename(store.manifest_path(other))
    store.engine_path(REQUEST).rename(store.engine_path(other))
    assert store.find(other) is None
    with pytest.raises(EngineRefusedError, match=f"manifest says {next(iter(change))}"):
        store.read(other)


def test_a_damaged_engine_is_refused(store: EngineStore) -> None:
    path = store.engine_path(REQUEST)
    damaged = bytearray(CONTENT)
    damaged[123] ^= 1
    path.write_bytes(damaged)
    assert store.find(REQUEST) is None
    with pytest.raises(EngineRefusedError, match="damaged"):
        store.read(REQUEST)
    path.unlink()
    assert store.find(REQUEST) is None
    with pytest.raises(EngineRefusedError, match="gone"):
        store.read(REQUEST)
    store.add(REQUEST, CONTENT, name="block", key="Block-1|1x8", facts={})
    assert store.read(REQUEST) == CONTENT


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 0}', '{"format": 1, "request": {}}'])
def test_a_file_that_is_no_manifest_is_refused(store: EngineStore, text: str) -> None:
    store.manifest_path(REQUEST).write_text(text)
    assert store.find(REQUEST) is None
    with pytest.raises(EngineRefusedError):
        store.read(REQUEST)


def test_a_failure_is_kept_with_its_reason(store: EngineStore) -> None:
    request = replace(REQUEST, device="7.5")
    store.add_failure(request, "EngineBuildError: no kernel", name="nms", key="NMS|1x100")
    found = store.find(request)
    assert found is not None
    assert (found.status, found.reason) == ("failed", "EngineBuildError: no kernel")
    with pytest.raises(EngineRefusedError, match="nms was not built: EngineBuildError: no kernel"):
        store.read(request)


def test_nothing_half_written_stays(store: EngineStore) -> None:
    assert sorted(path.suffix for path in store.folder.iterdir()) == [".engine", ".json"]
