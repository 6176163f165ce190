"""Every kind of detector that the space can write: a pairwise covering sample, and random ones of ``paper``, smaller.

Each one builds, trains a step, infers and decomposes. An export takes ten times as long as all that, so only those
detectors are exported that hold every choice and every wiring of proposals and head, and two of ``paper``.
``SMNAS_PAPER_SAMPLES=200`` tries more of ``paper``.
"""

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from profiler.graphs.export import to_onnx
from smnas.deploy.agreement import compare_detections
from smnas.evaluation.predict import DetectionArrays
from smnas.latency.workloads import end_to_end_workload, inference_workloads
from smnas.models.build import build_detector, deployable
from smnas.models.detector import Detector
from smnas.models.target import Detections, Target
from smnas.space.architecture import Architecture, ArchitectureError, FPNSpec
from smnas.space.preset import load_space
from smnas.space.sampling import sample_modular, sample_structural

CHOICES: dict[str, tuple[str, ...]] = {
    "backbone": (
        "basicblock_8_1-2-2",
        "basicblock_10_2-1-1-12",
        "bottleneck_8_1-2-1-1",
        "resnext4x8_8_1-1-2-1",
        "inverted_8_1-21-2",
        "mobilenetv2_25",
        "k1kxk1_8_16b8k3r1-24b8k5r2-24b16k3r1.32b8k3r1-40b8k5r1",
        "mbconv_8_8k3e3-12k5e1.k3e4-16k7e6",
    ),
    "neck": ("c4", "fpn_1-3_16", "fpn_2-4_16", "fpn_3-6_16", "fpn_2-7_16"),
    "extra": ("", "p", "c"),
    "rpn": ("norpn", "rpn", "garpn"),
    "head": ("rcnn_16", "cascade_2_16", "cascade_4_24", "retina_16_1", "fcos_16_1"),
    "size": ("64x64", "96x64", "72x90"),
    "norm": ("gn-ws", "bn"),
    "stem": ("deep", "imagenet"),
}
Case = tuple[str, ...]


def architecture_of(case: Case) -> Architecture | None:
    backbone, neck, extra, rpn, head, size, *_ = case
    if extra and neck == "c4":
        return None
    try:
        return Architecture.parse(f"{backbone}+{neck}{extra}+{rpn}+{head}+{size}")
    except ArchitectureError:
        return None


def pairs_of(case: Case) -> set[tuple[int, str, int, str]]:
    return {(i, case[i], j, case[j]) for i, j in itertools.combinations(range(len(case)), 2)}


def covering(facts: Mapping[Case, set[Any]]) -> list[Case]:
    """Greedy: the case with the most facts that no chosen one has, until all facts are covered."""
    left = set().union(*facts.values())
    chosen = []
    while left:
        best = max(facts, key=lambda case: len(facts[case] & left))
        chosen.append(best)
        left -= facts[best]
    return chosen


def covering_cases() -> list[Case]:
    """Of many random valid cases enough to cover every pair of choices.

    A pair that no valid case has (RetinaNet with an RPN) can not be covered; the space itself says which.
    """
    rng = np.random.default_rng(0)
    options = list(CHOICES.values())
    pool = {tuple(str(rng.choice(values)) for values in options) for _ in range(6000)}
    return covering({case: pairs_of(case) for case in sorted(pool) if architecture_of(case) is not None})


def exported_cases() -> list[Case]:
    """Of the covering cases enough to have every choice, and every RPN with every head."""

    def facts(case: Case) -> set[Any]:
        *_, rpn, head, _size, _norm, _stem = case
        return {*enumerate(case), (rpn, head)}

    return covering({case: facts(case) for case in CASES})


CASES = covering_cases()
EXPORTED = exported_cases()


def test_the_sample_covers_every_pair_that_fits_together() -> None:
    covered = set().union(*map(pairs_of, CASES))
    names = list(CHOICES)
    values = list(CHOICES.values())
    missing = []
    for i, j in itertools.combinations(range(len(names)), 2):
        for a, b in itertools.product(values[i], values[j]):
            if (i, a, j, b) not in covered:
                missing.append(f"{a} with {b}")
    one_stage = [head for head in CHOICES["head"] if head.startswith(("retina", "fcos"))]
    impossible = {f"{rpn} with {head}" for rpn in ("rpn", "garpn") for head in one_stage}
    impossible |= {f"norpn with {head}" for head in CHOICES["head"] if head not in one_stage}
    impossible |= {f"c4 with {what}" for what in ("p", "c", "norpn", *one_stage)}
    # a letter that says what would happen anyway, or where no level is extra, is refused
    pyramid_or_backbone = r"(fpn|.*block|.*next|inverted|mobile|k1kxk1|mbconv)"
    unclear = {m for m in missing if re.fullmatch(rf"{pyramid_or_backbone}\S* with [pc]|[pc] with \S+", m)}
    assert set(missing) - unclear <= impossible, sorted(set(missing) - unclear - impossible)
    assert len(CASES) < 50


def some_images(architecture: Architecture, count: int) -> torch.Tensor:
    shape = (count, 3, architecture.input_height, architecture.input_width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def targets(architecture: Architecture) -> list[Target]:
    """No object, one, and many."""
    rng = np.random.default_rng(1)
    found = []
    for count in (0, 1, 23):
        size = rng.uniform(4, 40, (count, 2))
        corner = rng.uniform(0, 1, (count, 2)) * (
            np.array([architecture.input_width, architecture.input_height]) - size
        )
        boxes = torch.from_numpy(np.hstack([corner, corner + size]).astype(np.float32))
        found.append(Target(boxes, torch.from_numpy(rng.integers(0, 5, count))))
    return found


def check_training_step(detector: Detector) -> None:
    losses = detector.loss(some_images(detector.architecture, 3), targets(detector.architecture))
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total), losses
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    alone = detector.loss(some_images(detector.architecture, 2), [targets(detector.architecture)[0]] * 2)
    assert all(torch.isfinite(loss) for loss in alone.values()), "no object at all"


def livelier(detector: Detector) -> Detector:
    """Spread the scores of a fresh detector, so that it finds something to compare."""
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            dense = "roi" not in name
            if name.endswith(("logits.weight", "objectness.weight", "location.weight")):
                parameter.mul_(4.0 if dense and name.endswith("logits.weight") else 20.0)  # 20 may saturate at 1
            if name.endswith("head.logits.bias") and dense:
                parameter.add_(3.0)
    return detector


def check_inference(detector: Detector) -> tuple[Detector, torch.Tensor, Detections]:
    ready = deployable(livelier(detector))
    images = some_images(detector.architecture, 1)
    with torch.inference_mode():
        found = ready(images)
    count = int(found.num[0])
    assert found.boxes.shape[1:] == (found.scores.shape[1], 4)
    assert torch.isfinite(found.boxes).all()
    assert not found.scores[0, count:].any()
    return ready, images, found


def check_export(detector: Detector) -> None:
    import onnxruntime

    ready, images, found = check_inference(detector)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = to_onnx(ready, [images], input_names=["images"], output_names=Detections._fields)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    other = DetectionArrays(*session.run(None, {"images": images.numpy()}))
    assert int(other.num[0]) == int(found.num[0])
    # Scores of random weights nearly tie, so that rows come in another order: each needs a partner somewhere, of its
    # class, with its box and its score.
    agreement = compare_detections(DetectionArrays(*(tensor.numpy() for tensor in found)), other)
    assert agreement.compared > 0
    assert agreement.holds, agreement


def check_workloads(detector: Detector) -> None:
    parts = inference_workloads(detector)
    assert sum(part.parameters for part in parts) == sum(parameter.numel() for parameter in detector.parameters())
    assert sum(part.flops for part in parts) == end_to_end_workload(detector).flops


def built(case: Case) -> Detector:
    architecture = architecture_of(case)
    assert architecture is not None
    norm, stem = case[-2:]
    torch.manual_seed(0)
    return build_detector(architecture, 5, norm=norm, stem=stem)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids="+".join)
def test_every_combination_trains_and_infers(case: Case) -> None:
    detector = built(case)
    check_workloads(detector)
    check_training_step(detector)
    check_inference(detector)


@pytest.mark.slow
@pytest.mark.parametrize("case", EXPORTED, ids="+".join)
def test_every_choice_and_wiring_exports(case: Case) -> None:
    check_export(built(case))


def smaller(architecture: Architecture) -> Architecture:
    """An eighth of the input and of every width: the same modules, levels and wiring."""
    backbone = re.sub(r"^(basicblock|bottleneck|resnext)_\d+_", r"\1_8_", str(architecture.backbone))
    backbone = re.sub(r"^mobilenetv2_\d+$", "mobilenetv2_20", backbone)
    # as many blocks as tell first ones from later ones
    backbone = re.sub(r"1{3,}", "11", backbone)
    small = Architecture.parse(str(architecture).replace(str(architecture.backbone), backbone, 1))
    if isinstance(small.neck, FPNSpec):
        small = replace(small, neck=replace(small.neck, width=small.neck.width // 8))
    head = replace(small.head, width=max(8, small.head.width // 128 * 8))  # a sixteenth, as a multiple of 8
    return replace(small, head=head, input_width=small.input_width // 8, input_height=small.input_height // 8)


def paper_sample(count: int) -> list[Architecture]:
    space = load_space("paper")
    rng = np.random.default_rng(2)
    drawn: dict[str, Architecture] = {}
    while len(drawn) < count:
        structure = sample_structural(space, rng)
        whole = structure if len(drawn) % 2 else sample_modular(space, structure, rng)
        drawn.setdefault(str(smaller(whole)), smaller(whole))
    return list(drawn.values())


PAPER = paper_sample(int(os.environ.get("SMNAS_PAPER_SAMPLES", "6")))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PAPER, ids=str)
def test_random_detectors_of_the_papers_space_train_and_infer(architecture: Architecture) -> None:
    torch.manual_seed(0)
    detector = build_detector(architecture, 5)
    check_workloads(detector)
    check_training_step(detector)
    check_inference(detector)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PAPER[: max(2, len(PAPER) - 6)], ids=str)
def test_random_detectors_of_the_papers_space_export(architecture: Architecture) -> None:
    torch.manual_seed(0)
    check_export(build_detector(architecture, 5))
