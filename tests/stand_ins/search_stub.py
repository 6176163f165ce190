"""A stand-in for training and measuring, for tests of the search only: instant, exact and without a network.

``StubScorer`` and ``StubLatency`` are smooth functions of an architecture with a little noise fixed by its name.
Their numbers mean nothing beyond these tests.
"""

import hashlib
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from profiler.prediction.predict import Latency
from smnas.scoring.base import Score, ScoringFailedError
from smnas.search.study.candidate import Complexity
from smnas.search.study.settings import DataFacts, SearchSettings, StageTrials
from smnas.space.architecture import Architecture, C4Spec
from smnas.space.families.mbconv import MBConvSpec
from smnas.space.families.mobilenetv2 import MobileNetV2Spec
from smnas.space.families.super_blocks import SuperBlockSpec


def noise(*key: object) -> float:
    """A number in 0..1 that only the key decides."""
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def load_of(a: Architecture) -> float:
    """Something like the cost of a detector."""
    if isinstance(a.backbone, MobileNetV2Spec):
        width, depth = a.backbone.width_percent / 4, 17
    elif isinstance(a.backbone, SuperBlockSpec):
        width, depth = a.backbone.super_blocks[-1].out ** 0.5, a.backbone.depth
    elif isinstance(a.backbone, MBConvSpec):
        width, depth = a.backbone.stages[-1].width, sum(len(stage.layers) for stage in a.backbone.stages)
    else:
        width, depth = a.backbone.stage_widths()[-1][-1] * a.backbone.expansion**0.5, a.backbone.depth
    neck = 32 if isinstance(a.neck, C4Spec) else a.neck.width
    return (width * depth + 4 * neck + a.head.width) * a.input_width * a.input_height / 1e6


def complexity(a: Architecture) -> Complexity:
    return Complexity(parameters=int(1e5 * load_of(a)), flops=int(1e8 * load_of(a)))


@dataclass
class StubLatency:
    """Latency in ms, fixed by the architecture. ``broken`` names architectures that can not be measured."""

    broken: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def __call__(self, a: Architecture) -> Latency:
        self.asked.append(str(a))
        if str(a) in self.broken:
            from smnas.latency.prediction import LatencyFailedError  # loads torch, which no worker process needs

            raise LatencyFailedError("the backend refused the graph")
        ms = 1.0 + load_of(a) * (0.95 + 0.1 * noise("latency", a))
        return Latency(ms=ms, low_ms=0.97 * ms, high_ms=1.03 * ms, calibrated=True)


@dataclass
class StubScorer:
    """AP that grows with the logarithm of the cost and with the epochs.

    ``diverge_share`` of the architectures fail; a file in ``out_dir`` stands for the checkpoint.
    """

    name: str = "stub"
    metric: str = "AP"
    trains: bool = True
    stops: bool = True
    diverge_share: float = 0.0
    seconds: float = 0.0
    calls: list[tuple[str, int, int]] = field(default_factory=list)
    raises: dict[int, BaseException] = field(default_factory=dict)

    def score(self, architecture, *, seed, epochs, out_dir: Path, on_progress=None) -> Score:  # type: ignore[no-untyped-def]
        return self._score(architecture, seed, epochs, epochs, out_dir)

    def score_until(self, architecture, *, seed, epochs, stop_epoch, out_dir: Path, on_progress=None) -> Score:  # type: ignore[no-untyped-def]
        return self._score(architecture, seed, epochs, stop_epoch, out_dir)

    def _score(self, architecture: Architecture, seed: int, epochs: int, reached: int, out_dir: Path) -> Score:
        self.calls.append((str(architecture), seed, reached))
        if len(self.calls) in self.raises:
            raise self.raises[len(self.calls)]
        if noise("diverge", architecture) < self.diverge_share:
            raise ScoringFailedError("the loss is not finite at step 17")
        out_dir.mkdir(parents=True, exist_ok=True)
        if self.seconds:
            time.sleep(self.seconds)
        ap = 0.1 + 0.12 * math.log1p(load_of(architecture)) * (1 - 0.8**reached)
        ap += 0.02 * noise("ap", architecture) + 0.01 * noise("seed", architecture, seed, reached)
        checkpoint = out_dir / "checkpoint.pt"
        checkpoint.write_text(json.dumps({"ap": ap}))
        metrics = {"ap": ap, "ap50": min(1.0, 1.6 * ap), "ap_small": math.nan}
        return Score(value=ap, metrics=metrics, seconds=0.5 * reached, epochs=reached, checkpoint=checkpoint)


def make_scorer(diverge_share: float, _worker: int) -> StubScorer:
    """A worker process's scorer."""
    return StubScorer(diverge_share=diverge_share)


def settings(**changes: object) -> SearchSettings:
    values = {
        "smnas": "0.1.0",
        "preset": "nano",
        "data": DataFacts(root="shapes", classes=("disc", "box"), train_images=10, val_images=5),
        "device": "cpu",
        "backend": "onnxruntime",
        "precision": "fp32",
        "recipe": {"epochs": 3, "learning_rate": 0.02},
        "epochs": 3,
        "scorer": "stub",
        "trials": StageTrials(structural=5, modular=5),
        "top": 2,
        "final_epochs": 6,
        "final_seeds": 2,
    }
    return SearchSettings(**(values | changes))  # type: ignore[arg-type]
