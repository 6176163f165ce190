"""Where does a training step and an inference on a CPU spend its time, and what could fusing an operator save?

One thread. ``torch.profiler`` says which of PyTorch's operators a step's time is in. For each part that might be worth
a kernel of its own, the calls of a real step are noted with their arguments and then done again by themselves, forward
and backward, in turns with the whole step: the part's share of the step's processor time is the most that fusing it
could save.

    python -m benchmarks.kernels.operator_time
"""

import argparse
import importlib
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.common.answers import keep_answer, processor_ms
from benchmarks.common.record import NUM_CLASSES
from benchmarks.training.training_step import PreparedBatch, some_images
from smnas.models.build import build_detector
from smnas.models.detector import Detector
from smnas.models.losses import LossOptions
from smnas.space.architecture import Architecture
from smnas.training.optimizer import build_optimizer
from smnas.training.recipe import load_recipe

DETECTORS = {
    "rcnn": "basicblock_16_11-21-21-21+fpn_2-5_64+rpn+rcnn_256+128x128",
    "retina": "basicblock_16_11-21-21-21+fpn_3-5_64+norpn+retina_64_2+128x128",
    "fcos": "basicblock_16_11-21-21-21+fpn_3-5_64+norpn+fcos_64_2+128x128",
}
"""The nano baseline, and the same backbone under dense heads."""
PARTS = {
    "RoIAlign": [("smnas.models.heads.roi_heads", "multi_level_roi_align")],
    "suppression": [
        ("smnas.models.heads.rpn", "grouped_nms_mask"),
        ("smnas.models.heads.roi_heads", "grouped_nms_mask"),
    ],
    "proposals with suppression": [("smnas.models.heads.rpn", "best_proposals")],
    "focal loss with sigmoid": [("smnas.models.heads.retina", "sigmoid_focal_loss")],
    "overlap loss": [
        ("smnas.models.heads.rpn", "overlap_loss"),
        ("smnas.models.heads.roi_heads", "overlap_loss"),
        ("smnas.models.heads.retina", "overlap_loss"),
        ("smnas.models.heads.fcos", "generalized_box_iou_loss"),
    ],
    "matching": [
        ("smnas.models.heads.rpn", "match"),
        ("smnas.models.heads.roi_heads", "match"),
        ("smnas.models.heads.retina", "match"),
        ("smnas.models.heads.fcos", "assign_centres"),
    ],
    "sampling": [("smnas.models.heads.rpn", "sample_balanced"), ("smnas.models.heads.roi_heads", "sample_balanced")],
    "detections with suppression": [("smnas.models.heads.roi_heads", "select_detections")],
}
"""By name, the functions that do a part, where they are called from."""
_OPERATORS = 14


class Call(NamedTuple):
    """One call of a step."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: dict[str, Any]


class Repeated:
    """Something that :func:`answers.processor_ms` runs again and again."""

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self) -> None:
        """Once."""
        self._run()


@contextmanager
def noted(parts: dict[str, list[Call]]) -> Iterator[None]:
    """Note the calls of every part."""

    def patched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            parts.setdefault(name, []).append(Call(function, arguments, named))
            return function(*arguments, **named)

        return wrapper

    with ExitStack() as stack:
        for name, places in PARTS.items():
            for module_name, function_name in places:
                module = importlib.import_module(module_name)
                function = getattr(module, function_name)
                stack.callback(setattr, module, function_name, function)
                setattr(module, function_name, patched(name, function))
        yield


def repeat(call: Call) -> Callable[[], object]:
    """The call by itself, with its backward pass where the step had one."""
    leaves: list[Tensor] = []

    def own(value: Any) -> Any:
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            return type(value)(own(each) for each in value)
        if not isinstance(value, Tensor):
            return value
        copy = value.detach().clone()
        if value.requires_grad:
            leaves.append(copy.requires_grad_())
        return copy

    arguments, named = own(call.arguments), {name: own(value) for name, value in call.named.items()}

    def run() -> object:
        found = call.function(*arguments, **named)
        if isinstance(found, Tensor) and found.requires_grad and leaves:
            return torch.autograd.grad(found, leaves, torch.ones_like(found), allow_unused=True)
        return found

    return run


def operators(run: Callable[[], object], times: int) -> list[dict[str, Any]]:
    """PyTorch's operators by their own time, the largest first, as shares of all."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(times):
            run()
    averages = [one for one in found.key_averages() if not one.key.startswith(("Optimizer.", "ProfilerStep"))]
    total = sum(one.self_cpu_time_total for one in averages)
    averages.sort(key=lambda one: -one.self_cpu_time_total)
    return [
        {"operator": one.key, "share": one.self_cpu_time_total / total, "calls": one.count / times}
        for one in averages[:_OPERATORS]
    ]


def training_step(detector: Detector, batch: PreparedBatch, losses: LossOptions) -> Callable[[], object]:
    """A step of the ``nano`` recipe; its learning rate is so small that the boxes stay what they are."""
    recipe = load_recipe("nano").with_(learning_rate=1e-7)
    optimizer = build_optimizer(detector, recipe)

    def step() -> None:
        loss = torch.stack(list(detector.loss(batch.images, batch.targets, losses).values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), recipe.clip_norm)
        optimizer.step()

    return step


def shares(whole: Callable[[], object], rounds: int) -> dict[str, Any]:
    """Processor time of the whole, and of each part as a share of it."""
    parts: dict[str, list[Call]] = {}
    with noted(parts):
        whole()
    sessions: dict[str, Any] = {"whole": Repeated(whole)}
    for name, calls in parts.items():
        runs = [repeat(call) for call in calls]
        sessions[name] = Repeated(lambda runs=runs: [run() for run in runs])
    found = processor_ms(sessions, rounds)
    return {
        "processor_ms": found,
        "share": {
            name: statistics.median(part / all_ for part, all_ in zip(each, found["whole"], strict=True))
            for name, each in found.items()
            if name != "whole"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cases: list[dict[str, Any]] = []
    for name, text in DETECTORS.items():
        architecture = Architecture.parse(text)
        batch = some_images(architecture, asked.batch)
        for box_loss in ("smooth-l1", "ciou") if name != "fcos" else ("giou",):
            torch.manual_seed(0)
            detector = build_detector(architecture, NUM_CLASSES)
            step = training_step(detector, batch, LossOptions(box=box_loss))
            for _ in range(3):
                step()
            what = f"training step, {box_loss}"
            cases.append(
                {"detector": name, "what": what, **shares(step, asked.rounds), "operators": operators(step, 5)}
            )
        detector.eval()

        def infer(detector: Detector = detector, images: Tensor = batch.images[:1]) -> object:
            with torch.no_grad():
                return detector(images)

        cases.append(
            {"detector": name, "what": "inference", **shares(infer, asked.rounds), "operators": operators(infer, 20)}
        )
    for case in cases:
        whole = statistics.median(case["processor_ms"]["whole"])
        print(f"{case['detector']}, {case['what']}: {whole:.1f} ms")
        print("   ", ", ".join(f"{part} {share:.1%}" for part, share in case["share"].items()))
        print(
            "   ", ", ".join(f"{one['operator']} {one['share']:.1%} ({one['calls']:.0f})" for one in case["operators"])
        )
    keep_answer(
        "operator-time",
        " ".join((__doc__ or "").split("\n\n")[0].split()),
        {"architectures": DETECTORS, "batch": asked.batch, "threads": 1, "cases": cases},
    )


if __name__ == "__main__":
    main()
