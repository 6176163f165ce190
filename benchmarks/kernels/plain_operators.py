"""How much slower are the plain forms of NMS and RoIAlign than the native operators, in ONNX Runtime on a CPU?

In turns, one thread, by processor time, as the ratio of plain to native in each round.

    python -m benchmarks.kernels.plain_operators
"""

import importlib
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.detectors import crowded_boxes, deployed
from benchmarks.common.turns import processor_ms, ratios
from kernels.nms import nms_mask
from kernels.roi_align import multi_level_roi_align
from profiler.backends import get_backend
from profiler.backends.onnxruntime import OnnxRuntimeSession
from profiler.graphs.export import to_onnx
from profiler.workload import random_inputs
from smnas.latency.workloads import end_to_end_workload

DETECTORS = (
    "basicblock_16_11-21-21+fpn_2-4_48+rpn+rcnn_128+128x128",
    "basicblock_16_11-21-21+fpn_2-4_48+rpn+cascade_3_128+128x128",
    "basicblock_16_11-21-21+fpn_2-4_48+norpn+retina_48_2+128x128",
)


class Suppress(nn.Module):
    """NMS within an image."""

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """``(B, N, 4)`` boxes and ``(B, N)`` scores to ``(B, N)`` bool."""
        kept: Tensor = nms_mask(boxes, scores, 0.5)
        return kept


class Pool(nn.Module):
    """Pooling from four levels."""

    def forward(self, boxes: Tensor, *features: Tensor) -> Tensor:
        """``(B, R, 4)`` boxes and a feature map per level to ``(B * R, C, 7, 7)``."""
        return multi_level_roi_align(list(features), boxes, [4, 8, 16, 32], 7, 224.0)


def cases() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """Modules and inputs by name."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {}
    for count in (300, 1000):
        scores = torch.rand(1, count, generator=generator)
        found[f"NMS of {count} boxes"] = Suppress(), (crowded_boxes(count, 512.0), scores)
    for channels, side, count in ((48, 128, 100), (256, 512, 300)):
        maps = [torch.randn(1, channels, side >> level, side >> level, generator=generator) for level in range(2, 6)]
        name = f"pooling of {count} boxes, {channels} channels, {side} pixels"
        found[name] = Pool(), (crowded_boxes(count, float(side)), *maps)
    for text in DETECTORS:
        whole = end_to_end_workload(deployed(text))
        found[text] = whole.module, random_inputs(whole.inputs, 0)
    return found


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
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
        found = processor_ms(sessions, args.rounds)
        times = ratios(found["plain"], found["native"])
        native_ms = statistics.median(found["native"])
        row = {"case": name, "plain_to_native": statistics.median(times), "ratios": times, "processor_ms": found}
        rows.append(row)
        print(f"{name}: {row['plain_to_native']:.2f} times native's {native_ms:.3f} ms", flush=True)
    keep_answer("plain-operators", __doc__, {"cases": rows}, backend="onnxruntime")


if __name__ == "__main__":
    main()
