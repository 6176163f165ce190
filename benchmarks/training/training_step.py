"""How fast is a training step, in which precision and memory layout, and how much memory does it take?

The steps are the project's own (:func:`smnas.training.epoch.train_epoch`, copies to the device included) on prepared
images; variants take turns in random order, so a ratio is of neighbours in time.
"""

import time
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.common.detectors import NANO_BASELINE, NUM_CLASSES, SMALL_BASELINE, PreparedBatch, prepared_batch
from benchmarks.common.gpu_question import Answer, Setting
from benchmarks.common.machine import one_line
from benchmarks.common.turns import interval, ratios, take_turns
from kernels.dispatch import Choice, use
from smnas.models.build import build_detector
from smnas.models.detector import Detector
from smnas.models.layers import NormKind, WSConv2d
from smnas.space.architecture import Architecture
from smnas.training.curve import EpochLog
from smnas.training.distributed import ALONE, loss_of
from smnas.training.epoch import train_epoch
from smnas.training.optimizer import build_optimizer
from smnas.training.recipe import load_recipe

Amp = Literal["off", "bf16", "fp16"]
_WARMUP_STEPS = 3
_MIN_ROUNDS = 5
_MAX_ROUNDS = 40


class _Prepared:
    """The same batch a number of times."""

    def __init__(self, batch: PreparedBatch, steps: int) -> None:
        self._batch = batch
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int) -> Iterable[PreparedBatch]:
        return (self._batch for _ in range(self.steps))


class _Dense(nn.Module):
    """What of a detector has the same shapes for every image.

    The kernel that standardizes all filters at once reads a table of addresses that lives no longer than its launch:
    nothing that a graph could replay, so each convolution's own operator does it here.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.backbone, self.neck = detector.backbone, detector.neck
        self._features = detector.features
        self._standardized = [module for module in self.modules() if isinstance(module, WSConv2d)]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        for conv in self._standardized:
            flat = conv.weight.flatten(1)
            conv.standardized = nn.functional.layer_norm(flat, flat.shape[1:]).view_as(conv.weight)
        try:
            return self._features(images)
        finally:
            for conv in self._standardized:
                conv.standardized = None


class Trainer:
    """One variant of one detector, ready to take steps."""

    def __init__(
        self,
        setting: Setting,
        architecture: Architecture,
        recipe_name: str,
        batch_size: int,
        amp: Amp,
        *,
        channels_last: bool,
        batch: PreparedBatch,
        steps: int,
        norm: NormKind = "gn-ws",
        kernels: Choice = "torch",
        learning_rate: float = 1e-5,
        classes: int = NUM_CLASSES,
    ) -> None:
        self._setting = setting
        self._kernels: Choice = kernels
        # a rate so small that hundreds of steps on one batch do not diverge
        self._recipe = load_recipe(recipe_name).with_(
            amp=amp, channels_last=channels_last, batch_size=batch_size, learning_rate=learning_rate, epochs=100_000
        )
        before = self._allocated()
        torch.manual_seed(0)
        self._detector = build_detector(architecture, classes, norm=norm).to(setting.place)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self._detector.to(memory_format=layout)
        self._loss = loss_of(self._detector, ALONE, self._recipe.losses)
        self._optimizer = build_optimizer(self._detector, self._recipe)
        self._scaler = torch.amp.GradScaler("cuda", enabled=setting.device.kind == "cuda" and amp == "fp16")
        self._batches = _Prepared(batch, _WARMUP_STEPS)
        self._rounds = 0
        self.round()
        self._optimizer.zero_grad(set_to_none=True)
        self._own = self._allocated() - before
        self._batches.steps = steps

    def record_features(self) -> None:
        """Make a CUDA graph of backbone and pyramid, forward and backward; later steps use it."""
        dense = _Dense(self._detector)
        images = next(iter(self._batches.epoch(0))).images.to(self._setting.place)
        amp = self._recipe.amp
        half = torch.autocast(
            "cuda", torch.bfloat16 if amp == "bf16" else torch.float16, enabled=amp != "off", cache_enabled=False
        )
        with half, use(self._kernels):
            recorded: Any = torch.cuda.make_graphed_callables(dense, (images,))

        def features(images: Tensor) -> tuple[Tensor, ...]:
            return tuple(recorded(images))

        # a function: a module that is assigned would not hide the method of its name
        self._detector.features = features  # type: ignore[method-assign]

    def losses(self, count: int) -> list[float]:
        """Take ``count`` rounds; the mean loss of each."""
        return [self._epoch().loss for _ in range(count)]

    def _epoch(self) -> EpochLog:
        with use(self._kernels):
            log = train_epoch(
                self._detector,
                self._loss,
                self._batches,
                self._recipe,
                self._optimizer,
                self._scaler,
                epoch=self._rounds,
                seed=0,
                device=self._setting.place,
            )
        self._rounds += 1
        return log

    def round(self) -> tuple[float, float]:
        """Take the steps; seconds, and the peak of allocated memory during them in 2**20 bytes (0 on a CPU)."""
        place = self._setting.place
        base = self._allocated()
        if place.type == "cuda":
            torch.cuda.reset_peak_memory_stats(place)
        self._setting.synchronize()
        started = time.perf_counter()
        self._epoch()
        self._setting.synchronize()
        seconds = time.perf_counter() - started
        if place.type != "cuda":
            return seconds, 0.0
        peak = torch.cuda.max_memory_allocated(place) - base
        self._optimizer.zero_grad(set_to_none=True)
        return seconds, (peak + getattr(self, "_own", 0)) / 2**20

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self._setting.place) if self._setting.device.kind == "cuda" else 0


def run(setting: Setting, answer: Answer) -> str:
    """Time the variants of both baselines, one detector after the other."""
    jobs = [("nano", NANO_BASELINE, 8, 10), ("small", SMALL_BASELINE, 16, 3)]
    if setting.quick:
        jobs = [("nano", NANO_BASELINE, 4, 1)]
        answer.skip("the small baseline", "--quick looks at the nano baseline only")
    amps: tuple[Amp, ...] = ("off", "bf16", "fp16")
    if setting.device.kind == "cpu":
        amps = ("off",)
        answer.skip("bf16 and fp16", "a CPU always trains in float32")
    summaries = []
    for number, (recipe_name, architecture, batch_size, steps) in enumerate(jobs):
        budget_s = setting.left_s / (len(jobs) - number)
        summaries.append(_time_variants(setting, answer, recipe_name, architecture, batch_size, steps, amps, budget_s))
        if setting.device.kind == "cuda":
            torch.cuda.empty_cache()
    return "; ".join(summaries)


def _time_variants(
    setting: Setting,
    answer: Answer,
    recipe_name: str,
    architecture: str,
    batch_size: int,
    steps: int,
    amps: Iterable[Amp],
    budget_s: float,
) -> str:
    started = time.monotonic()
    parsed = Architecture.parse(architecture)
    batch = prepared_batch(parsed, batch_size)
    trainers: dict[str, Trainer] = {}
    failed: dict[str, str] = {}
    kinds: dict[str, tuple[Amp, bool]] = {
        f"{'fp32' if amp == 'off' else amp}, {'channels-last' if last else 'contiguous'}": (amp, last)
        for amp in amps
        for last in (False, True)
    }
    for name, (amp, last) in kinds.items():
        try:
            trainers[name] = Trainer(
                setting, parsed, recipe_name, batch_size, amp, channels_last=last, batch=batch, steps=steps
            )
        except Exception as error:  # noqa: BLE001 - a variant that does not train is its own answer
            failed[name] = one_line(error)
    least, most = (2, 2) if setting.quick else (_MIN_ROUNDS, _MAX_ROUNDS)
    runs = {name: trainer.round for name, trainer in trainers.items()}
    turns = take_turns(runs, most, least=least, until=started + 0.9 * budget_s)
    seconds = {name: [took for took, _ in turn] for name, turn in turns.items()}
    base = "fp32, contiguous"
    parts = []
    for name, (amp, last) in kinds.items():
        head = {"preset": recipe_name, "architecture": architecture, "variant": name, "amp": amp, "channels_last": last}
        if name in failed:
            answer.add("rows", {**head, "failed": failed[name]})
            parts.append(f"{name} failed")
            continue
        shown = batch_size * steps
        row: dict[str, Any] = {**head, "batch": batch_size, "steps_a_round": steps, "seconds": seconds[name]}
        row |= {"images_per_s": interval([shown / took for took in seconds[name]])}
        if base not in failed:
            row["speed_against_fp32_contiguous"] = interval(ratios(seconds[base], seconds[name]))
        if setting.device.kind == "cuda":
            row["peak_memory_mb"] = max(peak for _, peak in turns[name])
        answer.add("rows", row)
        parts.append(f"{name} {row['images_per_s']['median']:.3g}/s")
    return f"{recipe_name}: {', '.join(parts)}"
