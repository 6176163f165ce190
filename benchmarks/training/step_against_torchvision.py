"""How many images per second does a training step process, beside torchvision's own Faster R-CNN, and what costs what?

The same architecture (ResNet-50-FPN, 512 pixels) on the same prepared images, in turns in random order. Torchvision's
step is that of its reference training script (``torchvision_reference.py``), ours the project's own with the recipe
``small``; then ours with BatchNorm, with the Triton kernels, with backbone and pyramid as a CUDA graph, in float32.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common.detectors import NUM_CLASSES, RESNET50, TINY, PreparedBatch, prepared_batch
from benchmarks.common.gpu_question import Answer, Setting
from benchmarks.common.machine import one_line
from benchmarks.common.turns import interval, ratios, take_turns
from benchmarks.training.torchvision_reference import reference_model, reference_optimizer, reference_step
from benchmarks.training.training_step import Amp, Trainer
from kernels.dispatch import Choice
from smnas.models.layers import NormKind
from smnas.space.architecture import Architecture

_BATCH = 16  # torchvision's reference: 2 images on each of 8 GPUs
_STEPS = 2  # a turn
_MIN_ROUNDS, _MAX_ROUNDS = 5, 30
REFERENCE = "torchvision"
OURS = "smnas"
BATCH_NORM = "smnas, batch norm"
KERNELS = "smnas, Triton kernels"
KERNELS_BATCH_NORM = "smnas, Triton kernels, batch norm"
TWICE = f"smnas, Triton kernels, {2 * _BATCH} images"
TWICE_BATCH_NORM = f"smnas, Triton kernels, batch norm, {2 * _BATCH} images"
GRAPH = "smnas, Triton kernels, CUDA graph"


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        amp: Precision.
        batch: Images in a step.
        norm: Of our detector; ``None``: torchvision's model.
        kernels: Whose operators.
        graph: Whether backbone and pyramid are a CUDA graph.
    """

    amp: Amp
    batch: int = _BATCH
    norm: NormKind | None = "gn-ws"
    kernels: Choice = "torch"
    graph: bool = False


VARIANTS = {
    # what matters most first: what there is no time to set up is left out
    REFERENCE: Variant("off", norm=None),
    OURS: Variant("bf16"),
    BATCH_NORM: Variant("bf16", norm="bn"),
    KERNELS: Variant("bf16", kernels="triton"),
    KERNELS_BATCH_NORM: Variant("bf16", norm="bn", kernels="triton"),
    GRAPH: Variant("bf16", kernels="triton", graph=True),
    TWICE: Variant("bf16", batch=2 * _BATCH, kernels="triton"),
    TWICE_BATCH_NORM: Variant("bf16", batch=2 * _BATCH, norm="bn", kernels="triton"),
    "torchvision, bf16": Variant("bf16", norm=None),
    "smnas, fp32": Variant("off"),
}


class ReferenceTrainer:
    """Torchvision's model and step, in turns of :data:`_STEPS` as :class:`Trainer` takes them."""

    def __init__(
        self, setting: Setting, batch: PreparedBatch, amp: Amp, steps: int, backbone: str, classes: int = NUM_CLASSES
    ) -> None:
        torch.manual_seed(0)
        size = batch.images.shape[-1]
        self._model = reference_model(classes, size, backbone).to(setting.place).train()
        self._optimizer = reference_optimizer(self._model)
        for group in self._optimizer.param_groups:
            group["lr"] = 1e-5  # without a warm-up the peak rate would break the weights, and with them the proposals
        self._setting, self._batch, self._steps, self._amp = setting, batch, steps, amp
        self.round()

    def round(self) -> tuple[float, float]:
        """Take the steps; seconds, and the peak of allocated memory in 2**20 bytes (0 on a CPU)."""
        cuda = self._setting.device.kind == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self._setting.place)
        self._setting.synchronize()
        began = time.perf_counter()
        for _ in range(self._steps):
            reference_step(self._model, self._optimizer, self._setting.place, self._batch, self._amp)
        self._setting.synchronize()
        seconds = time.perf_counter() - began
        return seconds, torch.cuda.max_memory_allocated(self._setting.place) / 2**20 if cuda else 0.0


def run(setting: Setting, answer: Answer) -> str:
    """Time the variants in turns; then where the time of our step goes."""
    architecture = Architecture.parse(TINY if setting.quick and setting.device.kind == "cpu" else f"{RESNET50}+512x512")
    backbone = "resnet18" if setting.quick and setting.device.kind == "cpu" else "resnet50"
    batch = prepared_batch(architecture, 2 if setting.device.kind == "cpu" else 2 * _BATCH)
    variants = dict(VARIANTS)
    if setting.device.kind == "cpu":
        variants = {name: variants[name] for name in (REFERENCE, "smnas, fp32")}
        answer.skip("bf16 and Triton", "a CPU always trains in float32")
    trainers: dict[str, Trainer | ReferenceTrainer] = {}
    shown: dict[str, int] = {}
    until = time.monotonic() + 0.5 * setting.left_s
    for name, variant in variants.items():
        if time.monotonic() > until:
            answer.skip(name, "no time was left to set it up")
            continue
        part = PreparedBatch(batch.images[: variant.batch], batch.targets[: variant.batch])
        shown[name] = len(part.targets) * _STEPS
        try:
            trainers[name] = _trainer(setting, architecture, backbone, variant, part)
        except Exception as error:  # noqa: BLE001 - a variant that does not train is its own answer
            answer.add("rows", {"variant": name, "failed": one_line(error)})
    answer.put(architecture=str(architecture), steps_a_round=_STEPS)
    least, most = (2, 2) if setting.quick else (_MIN_ROUNDS, _MAX_ROUNDS)
    runs = {name: trainer.round for name, trainer in trainers.items()}
    turns = take_turns(runs, most, least=least, until=time.monotonic() + 0.6 * setting.left_s)
    seconds = {name: [took for took, _ in turn] for name, turn in turns.items()}
    speeds = {name: [shown[name] / took for took in each] for name, each in seconds.items()}
    texts = []
    for name, each in speeds.items():
        row: dict[str, Any] = {
            "variant": name,
            **vars(variants[name]),
            "batch": shown[name] // _STEPS,
            "seconds": seconds[name],
            "images_per_s": interval(each),
            "peak_memory_mb": max(peak for _, peak in turns[name]),
        }
        if REFERENCE in speeds:
            row["speed_against_torchvision"] = interval(ratios(each, speeds[REFERENCE]))
        answer.add("rows", row)
        texts.append(f"{name} {row['images_per_s']['median']:.4g}/s")
    for ours, norm in ((OURS, BATCH_NORM), (KERNELS, KERNELS_BATCH_NORM), (TWICE, TWICE_BATCH_NORM)):
        if ours in seconds and norm in seconds:
            cost = ratios(seconds[ours], seconds[norm])
            answer.add("cost_of_group_norm", {"variant": ours, "times_batch_norm": interval(cost)})
            texts.append(f"{ours} takes {statistics.median(cost):.3f} times batch norm's time")
    for name in (KERNELS, GRAPH):
        if setting.device.kind == "cuda" and name in trainers:
            answer.put(**{f"profile_of_{name}": _profile(trainers[name].round)})
    return ", ".join(texts)


def _trainer(
    setting: Setting, architecture: Architecture, backbone: str, variant: Variant, batch: PreparedBatch
) -> Trainer | ReferenceTrainer:
    if variant.norm is None:
        return ReferenceTrainer(setting, batch, variant.amp, _STEPS, backbone)
    trainer = Trainer(
        setting,
        architecture,
        "small",
        len(batch.targets),
        variant.amp,
        channels_last=True,
        batch=batch,
        steps=_STEPS,
        norm=variant.norm,
        kernels=variant.kernels,
    )
    if variant.graph:
        trainer.record_features()
    return trainer


def _profile(run: Callable[[], object]) -> list[dict[str, Any]]:
    """The operators and kernels that take most of a turn, each by itself, in milliseconds."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    rows = [
        {
            "name": event.key[:120],
            "count": event.count,
            "gpu_ms": event.self_device_time_total / 1e3,
            "cpu_ms": event.self_cpu_time_total / 1e3,
            "kernel": event.device_type.name == "CUDA" and "#" not in event.key,
        }
        for event in found.key_averages()
    ]
    by_gpu = sorted(rows, key=lambda row: -row["gpu_ms"])[:40]
    by_cpu = sorted(rows, key=lambda row: -row["cpu_ms"])[:25]
    total = {
        "name": "all",
        "count": sum(row["count"] for row in rows),
        # an operator's time is its kernels', which stand for themselves
        "gpu_ms": sum(row["gpu_ms"] for row in rows if row["kernel"]),
        "cpu_ms": sum(row["cpu_ms"] for row in rows),
    }
    return [total, *by_gpu, *(row for row in by_cpu if row not in by_gpu)]
