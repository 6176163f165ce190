"""Is an extracted detector the activated one, and what does a training step with shared weights cost?

Extracts random detectors of a space from freshly initialised shared weights, compares outputs, modules and parameters
with the activated and with a separately built detector; then times whole steps of some of them with shared weights and
alone, in turns, by processor time.

    python -m benchmarks.training.shared_weights --preset nano --detectors 200 --timed 12
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common.answers import argument_parser, keep_answer
from benchmarks.common.detectors import NUM_CLASSES, PreparedBatch, prepared_batch
from benchmarks.common.turns import take_turns
from smnas.models.build import build_detector
from smnas.models.detector import Detector
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space
from smnas.supernet.supernet import Supernet
from smnas.training.optimizer import build_optimizer
from smnas.training.recipe import load_recipe


def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--detectors", type=int, default=200)
    parser.add_argument("--timed", type=int, default=12)
    args = parser.parse_args()
    space, rng = load_space(args.preset), np.random.default_rng(0)
    torch.manual_seed(0)
    recipe = load_recipe(space.recipe).with_(learning_rate=1e-6)  # hundreds of steps on one batch do not diverge
    began = time.process_time()
    supernet = Supernet(space, NUM_CLASSES)
    made_s = time.process_time() - began
    drawn = [supernet.draw(space.inputs[i % len(space.inputs)], rng) for i in range(args.detectors)]
    worst, found, differing = 0.0, 0, 0
    supernet.eval()
    for architecture in drawn:
        images = torch.from_numpy(rng.integers(0, 256, (1, 3, architecture.input_height, architecture.input_width)))
        extracted, alone = supernet.extract(architecture), build_detector(architecture, NUM_CLASSES)
        sizes = [[p.shape for p in detector.parameters()] for detector in (extracted, alone)]
        differing += repr(extracted) != repr(alone) or sizes[0] != sizes[1]
        with torch.no_grad():
            got, expected = extracted(images.byte()), supernet(images.byte(), architecture)
        found += int(expected.num.sum())
        worst = max(worst, *(float((a.float() - b.float()).abs().max()) for a, b in zip(got, expected, strict=True)))
    supernet.train()
    shared = build_optimizer(supernet, recipe)
    rows: list[dict[str, Any]] = []
    for architecture in drawn[: args.timed]:
        batch: PreparedBatch = prepared_batch(architecture, recipe.batch_size)
        alone = build_detector(architecture, NUM_CLASSES).train()
        optimizer = build_optimizer(alone, recipe)

        def with_shared(architecture: Architecture = architecture, batch: PreparedBatch = batch) -> float:
            start = time.process_time()
            losses = supernet.activate(architecture).loss(*batch)
            step(supernet, shared, torch.stack(list(losses.values())).sum())
            return time.process_time() - start

        def by_itself(
            alone: Detector = alone, optimizer: torch.optim.Optimizer = optimizer, batch: PreparedBatch = batch
        ) -> float:
            start = time.process_time()
            step(alone, optimizer, torch.stack(list(alone.loss(*batch).values())).sum())
            return time.process_time() - start

        contenders: dict[str, Callable[[], float]] = {"shared": with_shared, "alone": by_itself}
        times = take_turns(contenders, 4)
        shared_s, alone_s = (min(times[name][1:]) for name in ("shared", "alone"))
        rows.append({"architecture": str(architecture), "shared_s": shared_s, "alone_s": alone_s})
        print(f"{shared_s / alone_s:5.2f}  {1e3 * alone_s:6.0f} ms alone  {architecture}", flush=True)
    ratios = [row["shared_s"] / row["alone_s"] for row in rows]
    answer = {
        "preset": args.preset,
        "detectors": args.detectors,
        "largest_difference": worst,
        "detections_compared": found,
        "other_modules_or_parameters": differing,
        "shared_parameters": sum(p.numel() for p in supernet.parameters()),
        "initialised_s": made_s,
        "step_ratio_of_sums": sum(row["shared_s"] for row in rows) / sum(row["alone_s"] for row in rows),
        "step_ratio_median": statistics.median(ratios),
        "batch": recipe.batch_size,
        "rows": rows,
    }
    print({key: value for key, value in answer.items() if key != "rows"})
    keep_answer("shared-weights", __doc__, answer)


if __name__ == "__main__":
    main()
