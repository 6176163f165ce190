"""The strategy that searches by entropy within a latency: its result keeps the limit, is kept, and is handed out."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lawful_latency import LawfulLatency

from profiler.errors import UserError
from smnas.scoring.entropy import detector_entropy
from smnas.search.context import SearchContext
from smnas.search.pareto import as_points, non_dominated
from smnas.search.strategies.mae_det.zero_shot import ZeroShotStage, mae_det, zero_shot_search
from smnas.search.study.candidate import Candidate
from smnas.search.study.settings import DataFacts, RunFolderError, SearchSettings, StageTrials
from smnas.space.architecture import Architecture, parse_backbone
from smnas.space.convolutions import layers, multiply_adds, parameters
from smnas.space.families.super_blocks import SuperBlockSpec, seed_of
from smnas.space.preset import SpaceError, load_space

NANO = load_space("nano")
FRAME = NANO.baseline_architecture


@pytest.fixture(scope="module")
def found():  # type: ignore[no-untyped-def]
    return zero_shot_search(FRAME, LawfulLatency(), layers=31, limit_ms=3.25, steps=20_000)  # type: ignore[arg-type]


@pytest.mark.slow
def test_what_is_found_keeps_the_limit_by_other_means(found) -> None:  # type: ignore[no-untyped-def]
    latency = LawfulLatency()
    assert len(found.candidates) == len({c.architecture for c in found.candidates}) > 10
    for candidate in found.candidates:
        architecture = Architecture.parse(candidate.architecture)
        chain = architecture.backbone.convolutions()
        assert latency.measure_and_predict(architecture).ms == pytest.approx(candidate.latency_ms, rel=1e-6)
        assert candidate.latency_ms <= 3.25
        assert candidate.layers == layers(chain) <= 31
        assert candidate.parameters == parameters(chain)
        assert candidate.multiply_adds == multiply_adds(chain, FRAME.input_width, FRAME.input_height)
        assert candidate.entropy == pytest.approx(detector_entropy(architecture))
        assert (architecture.neck, architecture.rpn, architecture.head) == (FRAME.neck, FRAME.rpn, FRAME.head)
    assert found.relative_error == pytest.approx(0.0, abs=1e-6)


def test_the_first_is_the_best_and_the_front_spreads(found) -> None:  # type: ignore[no-untyped-def]
    points = as_points([(c.entropy, c.latency_ms) for c in found.candidates])
    assert points[0, 0] == points[:, 0].max()
    front = non_dominated(points)
    assert front[:10].all(), "the front comes before what is behind it"
    assert np.ptp(points[:10, 1]) > 0.5 * np.ptp(points[front, 1])


@pytest.mark.slow
def test_the_blocks_of_the_best_are_measured_before_the_search_that_counts() -> None:
    latency, told = LawfulLatency(), []
    zero_shot_search(FRAME, latency, layers=31, limit_ms=3.25, steps=3000, on_step=told.append)  # type: ignore[arg-type]
    first = set(latency.completed[: len(latency.completed) // 2])
    assert str(FRAME).replace(str(FRAME.backbone), str(seed_of(FRAME.backbone))) in map(str, first)
    assert set(latency.completed) - first, "the second fit has more than the first"
    assert "6,000 backbones scored" in told[-1]


def test_the_seed_has_the_baselines_depths_and_channels() -> None:
    assert str(seed_of(FRAME.backbone)) == "k1kxk1_16_16b8k3r2-32b16k3r2-64b32k3r2-128b64k3r2"
    assert str(seed_of(parse_backbone("bottleneck_64_111-2111-211111-211"))) == (
        "k1kxk1_64_256b64k3r3-512b128k3r4-1024b256k3r6-2048b512k3r3"
    )
    spec = seed_of(parse_backbone("mobilenetv2_100"))
    assert [stage[0].repeats for stage in spec.stages] == [2, 3, 7, 4]
    assert seed_of(spec) is spec


def test_what_can_not_be_searched_is_said() -> None:
    with pytest.raises(SpaceError, match="three for every stage"):
        zero_shot_search(FRAME, LawfulLatency(), layers=0)  # type: ignore[arg-type]
    with pytest.raises(SpaceError, match="must find a backbone within"):
        zero_shot_search(FRAME, LawfulLatency(), layers=31, limit_ms=3.0, steps=500)  # type: ignore[arg-type]
    c4 = Architecture.parse("basicblock_16_11-21-21+c4+rpn+rcnn_64+128x128")
    with pytest.raises(UserError, match="needs a detector with a pyramid"):
        zero_shot_search(c4, LawfulLatency(), layers=31, steps=500)  # type: ignore[arg-type]


def settings(**values: object) -> SearchSettings:
    known: dict[str, object] = {
        "smnas": "0.1.0",
        "preset": "nano",
        "data": DataFacts(root="shapes", classes=("disc",), train_images=1, val_images=1),
        "device": "cpu",
        "backend": "onnxruntime",
        "precision": "fp32",
        "recipe": {},
        "epochs": 1,
        "scorer": "entropy",
        "latency_ms": 3.25,
        "trials": StageTrials(structural=0, modular=3),
    }
    return SearchSettings(**(known | values))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_keeps_its_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smnas.search.strategies.mae_det.zero_shot._STEPS", 3000)
    strategy = mae_det(SearchContext(tmp_path, settings(), NANO, profiler=LawfulLatency()))
    (stage,) = strategy.stages
    assert (strategy.name, stage.name, stage.trials) == ("mae-det", "modular", 3)
    again = mae_det(SearchContext(tmp_path, settings(), NANO))
    assert again == strategy, "read back, not searched again"
    document = json.loads((tmp_path / "zero-shot.json").read_text())
    document["colour"] = "blue"
    (tmp_path / "zero-shot.json").write_text(json.dumps(document))
    with pytest.raises(RunFolderError, match="must hold a zero-shot search's result"):
        mae_det(SearchContext(tmp_path, settings(), NANO))


def test_candidates_are_handed_out_once() -> None:
    row = tuple(
        replace(FRAME, backbone=parse_backbone(text))
        for text in ("k1kxk1_8_8b8k3r1-16b8k3r1-16b8k3r1-16b8k3r1", "k1kxk1_8_8b8k3r1-16b8k3r1-16b8k3r1-16b8k3r2")
    )
    assert all(isinstance(a.backbone, SuperBlockSpec) for a in row)
    stage = ZeroShotStage(row, trials=2)
    rng = np.random.default_rng(0)
    history: list[Candidate] = []
    for expected in row:
        proposal = stage.ask(history, rng)
        assert proposal is not None
        assert proposal.architecture == expected
        history.append(
            Candidate(len(history), expected, "modular", proposal.origin, proposal.parent, "pruned", seed=0, epochs=1)
        )
    assert stage.ask(history, rng) is None
