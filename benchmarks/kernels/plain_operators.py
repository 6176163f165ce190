"""How much slower are the plain forms of NMS and RoIAlign than the native operators, in ONNX Runtime on a CPU?

Every pair is measured in turns, one thread, by processor time, and answered as the ratio plain to native of each round.

    python -m benchmarks.kernels.plain_operators
"""

import argparse
import importlib
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.answers import keep_answer, processor_ms
from kernels.nms import nms_mask
from kernels.roi_align import multi_level_roi_align
from profiler.backends import get_backend
from profiler.backends.onnxruntime import OnnxRuntimeSession
from profiler.graphs.export import to_onnx
from profiler.workload import random_inputs
from smnas.latency.workloads import whole_workload
from smnas.models.build import build_detector, deployable
from smnas.space.architecture import Architecture

CLASSES = 3
DETECTORS = (
    "basicblock_16_11-21-21+fpn_2-4_48+rpn+rcnn_128+128x128",
    "basicblock_16_11-21-21+fpn_2-4_48+rpn+cascade_3_128+128x128",
    "basicblock_16_11-21-21+fpn_2-4_48+norpn+retina_48_2+128x128",
)


class Suppress(nn.Module):
    """Suppression within an image."""

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """``(B, N, 4)`` boxes and ``(B, N)`` scores to ``(B, N)`` bool."""
        return nms_mask(boxes, scores, 0.5)


class Pool(nn.Module):
    """Pooling from four levels."""

    def forward(self, boxes: Tensor, *features: Tensor) -> Tensor:
        """``(B, R, 4)`` boxes and a map a level to ``(B * R, C, 7, 7)``."""
        return multi_level_roi_align(list(features), boxes, [4, 8, 16, 32], 7, 224.0)


def boxes_in_groups(count: int, side: float) -> Tensor:
    """Boxes that crowd around a tenth as many objects, as a detector's candidates do: ``(1, count, 4)``."""
    generator = torch.Generator().manual_seed(count)
    objects = torch.rand(max(1, count // 10), 2, generator=generator) * side * 0.8
    chosen = objects[torch.randint(len(objects), (count,), generator=generator)]
    corner = chosen + torch.randn(count, 2, generator=generator) * side / 100
    size = side / 8 * (0.5 + torch.rand(count, 2, generator=generator))
    return torch.cat([corner, corner + size], dim=1).clamp(0, side)[None]


def cases() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """What is measured, by name."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {}
    for count in (300, 1000):
        scores = torch.rand(1, count, generator=generator)
        found[f"NMS of {count} boxes"] = Suppress(), (boxes_in_groups(count, 512.0), scores)
    for channels, side, count in ((48, 128, 100), (256, 512, 300)):
        maps = [torch.randn(1, channels, side >> level, side >> level, generator=generator) for level in range(2, 6)]
        name = f"pooling of {count} boxes, {channels} channels, {side} pixels"
        found[name] = Pool(), (boxes_in_groups(count, float(side)), *maps)
    for text in DETECTORS:
        torch.manual_seed(0)
        whole = whole_workload(deployable(build_detector(Architecture.parse(text), CLASSES)))
        found[text] = whole.module, random_inputs(whole.inputs, 0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    backend: Any = get_backend("onnxruntime")
    runtime = importlib.import_module("onnxruntime")
    rows = []
    for name, (module, inputs) in cases().items():
        names = [f"input_{index}" for index in range(len(inputs))]
        feeds = {one: tensor.numpy() for one, tensor in zip(names, inputs, strict=True)}
        sessions = {
            form: OnnxRuntimeSession(
                runtime,
                to_onnx(module, inputs, input_names=names, operators=form).SerializeToString(),
                feeds,
                backend,
            )
            for form in ("native", "plain")
        }
        found = processor_ms(sessions, asked.rounds)
        ratios = [plain / native for plain, native in zip(found["plain"], found["native"], strict=True)]
        native_ms = statistics.median(found["native"])
        row = {"case": name, "plain_to_native": statistics.median(ratios), "ratios": ratios, "processor_ms": found}
        rows.append(row)
        print(f"{name}: {row['plain_to_native']:.2f} times native's {native_ms:.3f} ms", flush=True)
    keep_answer(
        "plain-operators", " ".join((__doc__ or "").split("\n\n")[0].split()), {"cases": rows}, backend="onnxruntime"
    )


if __name__ == "__main__":
    main()
