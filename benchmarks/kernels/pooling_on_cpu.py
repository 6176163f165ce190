"""How fast is RoIAlign of a pyramid on a CPU beside torchvision's ``MultiScaleRoIAlign``?

One thread, in turns, by processor time, as the ratio of torchvision's to ours in each round.

    python -m benchmarks.kernels.pooling_on_cpu
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.detectors import crowded_boxes
from benchmarks.common.turns import processor_ms, ratios
from kernels.roi_align import multi_level_roi_align

STRIDES = [4, 8, 16, 32]
# channels, side in pixels, images, boxes an image, with the gradient
CASES = {
    "a training step of the nano baseline": (64, 128, 4, 64, True),
    "an inference of the nano baseline": (64, 128, 1, 100, False),
    "a training step of the small baseline, 2 images": (256, 512, 2, 512, True),
    "an inference of the small baseline": (256, 512, 1, 1000, False),
    "few boxes on large maps": (256, 800, 1, 100, False),
}


def forms(channels: int, side: int, batch: int, count: int, *, train: bool) -> dict[str, Callable[[], object]]:
    """Ours and torchvision's on the same maps and boxes."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(batch, channels, side // one, side // one, generator=generator) for one in STRIDES]
    maps = [one.requires_grad_(train) for one in maps]
    boxes = crowded_boxes(count, float(side)).expand(batch, -1, -1).contiguous()
    upstream = torch.randn(batch * count, channels, 7, 7, generator=generator)
    names = [str(stride) for stride in STRIDES]
    canonical = 224 if side >= 400 else 112
    pool = MultiScaleRoIAlign(names, 7, 2, canonical_scale=canonical)

    def ours() -> Tensor:
        return multi_level_roi_align(maps, boxes, STRIDES, 7, float(canonical))

    def theirs() -> Tensor:
        pooled: Tensor = pool(dict(zip(names, maps, strict=True)), list(boxes), [(side, side)] * batch)
        return pooled

    def run(form: Callable[[], Tensor]) -> Callable[[], object]:
        return (lambda: torch.autograd.grad(form(), maps, upstream)) if train else form

    torch.testing.assert_close(ours(), theirs(), atol=1e-4, rtol=1e-4)
    return {"ours": run(ours), "torchvision": run(theirs)}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, (channels, side, batch, count, train) in CASES.items():
        runs = forms(channels, side, batch, count, train=train)
        found = processor_ms(runs, args.rounds)
        speed = ratios(found["torchvision"], found["ours"])
        rows.append(
            {"case": name, "torchvision_to_ours": statistics.median(speed), "ratios": speed, "processor_ms": found}
        )
        print(
            f"{name}: {statistics.median(speed):.2f} times as fast, {statistics.median(found['ours']):.2f} ms",
            flush=True,
        )
    keep_answer("pooling-on-cpu", __doc__, {"cases": rows})


if __name__ == "__main__":
    main()
