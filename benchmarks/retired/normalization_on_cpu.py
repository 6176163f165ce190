"""What do the CPU forms of weight standardization and GroupNorm cost, and what is a training step to them?

Two choices of ``kernels`` are held against what they replaced: filters standardized by layer normalization instead of
batch normalization, and residuals added in place instead of into a map of their own. Forward and backward, one thread,
processor time, in turns. Then the whole step of the nano baseline, and the shares of operators in it.

    python -m benchmarks.retired.normalization_on_cpu
"""

import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.common.answers import keep_answer
from benchmarks.common.record import NANO_BASELINE, NUM_CLASSES, SMALL_BASELINE
from benchmarks.training.training_step import some_images
from kernels.group_norm import group_norm_relu
from kernels.weight_standardization import weight_standardize
from smnas.models import layers
from smnas.models.build import build_detector
from smnas.models.layers import WSConv2d
from smnas.space.architecture import Architecture

ROUNDS = 25
MAPS = ((4, 16, 32, 8), (4, 64, 32, 32), (4, 128, 4, 8), (2, 64, 128, 32), (2, 256, 64, 32))
"""Images, channels, cells of a side, and groups."""
PARTS = {
    "GroupNorm": ("aten::native_group_norm", "aten::native_group_norm_backward"),
    "ReLU": ("aten::clamp_min_", "aten::threshold_backward"),
    "weight standardization": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "convolution": ("aten::convolution", "aten::convolution_backward"),
}
"""Operators by what they do; their time with what they call. Layer norms of the head's vectors are among the third."""


def by_batch_norm(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """The form that was replaced."""
    flat = weight.reshape(1, weight.shape[0], -1)
    return F.batch_norm(flat, None, None, training=True, eps=eps).view_as(weight)


def out_of_place(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    *,
    relu: bool,
) -> Tensor:
    """The form that was replaced."""
    out = F.group_norm(x, groups, weight, bias, eps)
    out = out if residual is None else out + residual
    return F.relu(out, inplace=True) if relu else out


def in_turns(runs: Mapping[str, Callable[[], object]], at_least_s: float) -> dict[str, list[float]]:
    """Milliseconds of processor time of one run, in random order in every round."""
    rng, names = np.random.default_rng(0), list(runs)
    found: dict[str, list[float]] = {name: [] for name in names}
    for run in runs.values():
        run()
    for _ in range(ROUNDS):
        for index in rng.permutation(len(names)).tolist():
            count, began = 0, time.process_time()
            while (spent := time.process_time() - began) < at_least_s or count < 2:
                runs[names[index]]()
                count += 1
            found[names[index]].append(spent / count * 1e3)
    return found


def row(what: str, before: list[float], now: list[float]) -> dict[str, object]:
    """Medians and the ratio of neighbours, with its tenth and ninetieth percentile."""
    ratios = np.array(before) / np.array(now)
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9]).tolist()
    medians = {"before_ms": statistics.median(before), "now_ms": statistics.median(now)}
    print(f"{what}: {medians['before_ms']:.3f} ms, now {medians['now_ms']:.3f}: {middle:.2f} ({low:.2f} to {high:.2f})")
    return {"what": what, **medians, "times_as_fast": {"median": middle, "low": low, "high": high}}


def standardizations() -> list[dict[str, object]]:
    """All filters of a detector."""
    rows = []
    for name, text in {"nano": NANO_BASELINE, "small": SMALL_BASELINE}.items():
        detector = build_detector(Architecture.parse(text), NUM_CLASSES)
        weights = [conv.weight for conv in detector.modules() if isinstance(conv, WSConv2d)]
        upstream = [torch.randn_like(weight) for weight in weights]

        def both_ways(
            one: Callable[[Tensor], Tensor], weights: list[Tensor] = weights, upstream: list[Tensor] = upstream
        ) -> object:
            return torch.autograd.grad([one(weight) for weight in weights], weights, upstream)

        runs = {
            "before": lambda way=both_ways: way(by_batch_norm),
            "now": lambda way=both_ways: way(weight_standardize),
        }
        times = in_turns(runs, 0.1)
        rows.append(row(f"filters of the {name} baseline", times["before"], times["now"]))
    return rows


def additions() -> list[dict[str, object]]:
    """GroupNorm, addition and ReLU of one map."""
    rows = []
    for batch, channels, cells, groups in MAPS:
        x, residual = (torch.randn(batch, channels, cells, cells, requires_grad=True) for _ in range(2))
        weight, bias = (torch.rand(channels, requires_grad=True) for _ in range(2))
        leaves, upstream = (x, residual, weight, bias), torch.randn_like(x)

        def both_ways(
            one: Callable[..., Tensor],
            leaves: tuple[Tensor, ...] = leaves,
            upstream: Tensor = upstream,
            groups: int = groups,
        ) -> object:
            x, residual, weight, bias = leaves
            return torch.autograd.grad(one(x, groups, weight, bias, 1e-5, residual, relu=True), leaves, upstream)

        runs = {"before": lambda way=both_ways: way(out_of_place), "now": lambda way=both_ways: way(group_norm_relu)}
        times = in_turns(runs, 0.1)
        shape = f"{batch}x{channels}x{cells}x{cells} in {groups} groups"
        rows.append(row(f"GroupNorm, addition and ReLU of {shape}", times["before"], times["now"]))
    return rows


class Step:
    """Training steps of the nano baseline on four images, with one form or the other."""

    def __init__(self, standardize: Callable[..., Tensor], normalize: Callable[..., Tensor]) -> None:
        torch.manual_seed(0)
        architecture = Architecture.parse(NANO_BASELINE)
        self._forms = standardize, normalize
        self._detector = build_detector(architecture, NUM_CLASSES).train()
        self._batch = some_images(architecture, 4)
        self._optimizer = torch.optim.AdamW(self._detector.parameters(), lr=1e-5)

    def __call__(self) -> None:
        layers.weight_standardize, layers.group_norm_relu = self._forms  # type: ignore[assignment]
        loss = torch.stack(list(self._detector.loss(self._batch.images, self._batch.targets).values())).sum()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._detector.parameters(), 10.0)
        self._optimizer.step()


def shares(step: Step) -> dict[str, float]:
    """Of a step's time in operators."""
    for _ in range(2):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as record:
        for _ in range(5):
            step()
    events = record.key_averages()
    whole = sum(event.self_cpu_time_total for event in events)
    return {
        name: sum(event.cpu_time_total for event in events if event.key in operators) / whole
        for name, operators in PARTS.items()
    }


def main() -> None:
    torch.set_num_threads(1)
    operators = [*standardizations(), *additions()]
    steps = {"before": Step(by_batch_norm, out_of_place), "now": Step(weight_standardize, group_norm_relu)}
    times = in_turns(steps, 0.1)
    whole = row("a training step of the nano baseline, four images", times["before"], times["now"])
    parts = shares(steps["now"])
    print(", ".join(f"{name} {share:.1%}" for name, share in parts.items()))
    found = {"operators": operators, "step": whole, "raw_step_ms": times, "shares_of_the_step": parts}
    keep_answer("normalization-on-cpu", (__doc__ or "").splitlines()[0], found)


if __name__ == "__main__":
    main()
