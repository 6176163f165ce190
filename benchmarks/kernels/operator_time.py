"""Where does a training step and an inference on a CPU spend its time, and what could fusing an operator save?

One thread. ``torch.profiler`` says which of PyTorch's operators a step's time is in. For each part that might be worth
a kernel of its own, the calls of a real step are recorded with their arguments and then repeated alone, forward and
backward, in turns with the whole step: the part's share of the step's processor time is the most that fusing it could
save.

    python -m benchmarks.kernels.operator_time
"""

import importlib
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.detectors import NUM_CLASSES, prepared_batch, training_step
from benchmarks.common.turns import processor_ms, ratios
from smnas.models.build import build_detector
from smnas.models.detector import Detector
from smnas.models.losses import LossOptions
from smnas.space.architecture import Architecture

DETECTORS = {
    "rcnn": "basicblock_16_11-21-21-21+fpn_2-5_64+rpn+rcnn_256+128x128",
    "retina": "basicblock_16_11-21-21-21+fpn_3-5_64+norpn+retina_64_2+128x128",
    "fcos": "basicblock_16_11-21-21-21+fpn_3-5_64+norpn+fcos_64_2+128x128",
}
"""The nano baseline, and the same backbone under dense heads."""
PARTS = {
    "RoIAlign": [("smnas.models.heads.roi_heads", "multi_level_roi_align")],
    "NMS": [
        ("smnas.models.heads.rpn", "grouped_nms_mask"),
        ("smnas.models.heads.roi_heads", "grouped_nms_mask"),
    ],
    "proposals with NMS": [("smnas.models.heads.rpn", "best_proposals")],
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
    "detections with NMS": [("smnas.models.heads.roi_heads", "select_detections")],
}
"""By name, the functions that do a part, where they are called from."""
_OPERATORS = 14


class Call(NamedTuple):
    """One call of a step."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: dict[str, Any]


@contextmanager
def recorded(parts: dict[str, list[Call]]) -> Iterator[None]:
    """Record the calls of every part."""

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


def shares(whole: Callable[[], object], rounds: int) -> dict[str, Any]:
    """Processor time of the whole, and of each part as a share of it."""
    parts: dict[str, list[Call]] = {}
    with recorded(parts):
        whole()
    runs: dict[str, Callable[[], object]] = {"whole": whole}
    for name, calls in parts.items():
        repeated = [repeat(call) for call in calls]
        runs[name] = partial(lambda all_: [run() for run in all_], repeated)
    found = processor_ms(runs, rounds)
    return {
        "processor_ms": found,
        "share": {
            name: statistics.median(ratios(each, found["whole"])) for name, each in found.items() if name != "whole"
        },
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases: list[dict[str, Any]] = []
    for name, text in DETECTORS.items():
        architecture = Architecture.parse(text)
        batch = prepared_batch(architecture, args.batch)
        for box_loss in ("smooth-l1", "ciou") if name != "fcos" else ("giou",):
            torch.manual_seed(0)
            detector = build_detector(architecture, NUM_CLASSES)
            step = training_step(detector, batch, LossOptions(box=box_loss))
            for _ in range(3):
                step()
            what = f"training step, {box_loss}"
            cases.append({"detector": name, "what": what, **shares(step, args.rounds), "operators": operators(step, 5)})
        detector.eval()

        def infer(detector: Detector = detector, images: Tensor = batch.images[:1]) -> object:
            with torch.no_grad():
                return detector(images)

        cases.append(
            {"detector": name, "what": "inference", **shares(infer, args.rounds), "operators": operators(infer, 20)}
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
        __doc__,
        {"architectures": DETECTORS, "batch": args.batch, "threads": 1, "cases": cases},
    )


if __name__ == "__main__":
    main()
