"""Does a detector trained on the GPU end where one trained on the CPU does?"""

import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common.detectors import NANO_BASELINE
from benchmarks.common.gpu_question import Answer, Setting
from benchmarks.common.machine import one_line
from profiler.errors import UserError
from smnas.data.coco import CocoFolder, DetectionDataset
from smnas.data.shapes import generate_shapes
from smnas.evaluation.predict import eager_detect, evaluate
from smnas.models.build import build_detector
from smnas.space.architecture import Architecture
from smnas.training.checkpoint import CHECKPOINT_FILE
from smnas.training.curve import StepLog
from smnas.training.fit import fit
from smnas.training.recipe import Recipe, load_recipe

_IMAGES_SEEN = 3840
_CPU_THREADS = 4
"""More only cost time in so small a network."""
_EVALUATION_S = 10.0


class OverTimeError(Exception):
    """A training run that would not end in time."""


def coco_folder(setting: Setting) -> CocoFolder:
    """The folder that was given, or the generated shapes."""
    if setting.data is not None:
        return CocoFolder(setting.data)
    if setting.quick:
        return CocoFolder(generate_shapes(setting.scratch / "shapes", train=32, val=8, width=96, height=96))
    return CocoFolder(generate_shapes(setting.scratch / "shapes"))


def trained_checkpoint(setting: Setting) -> Path:
    """The checkpoint of the detector trained on the device in float32 with seed 0.

    Raises:
        UserError: there is none.
    """
    checkpoint = setting.scratch / f"trained-{setting.device.kind}-off-0" / CHECKPOINT_FILE
    if not checkpoint.is_file():
        raise UserError("a detector trained on the device is needed, but the question trained_ap left none")
    return checkpoint


def originals_of(split: DetectionDataset, setting: Setting) -> list[NDArray[np.uint8]]:
    """The first 32 images of a split, or 8 in a quick look."""
    return [split.image(index) for index in range(min(len(split), 8 if setting.quick else 32))]


def run(setting: Setting, answer: Answer) -> str:
    """Train the nano baseline with one recipe on the device and on the CPU, then by mixed precision and other seeds."""
    folder = coco_folder(setting)
    train = folder.split("train")
    epochs = 1 if setting.quick else max(1, round(_IMAGES_SEEN / len(train)))
    # the recipe's batches of 4 leave a GPU idle while the host starts its kernels
    recipe = load_recipe("nano").with_(epochs=epochs, batch_size=16)
    answer.put(
        data="a COCO folder" if setting.data is not None else "generated shapes",
        train_images=len(train),
        val_images=len(folder.split("val")),
        classes=len(folder.classes),
        architecture=NANO_BASELINE,
        recipe=recipe.model_dump(mode="json"),
    )
    kind = setting.device.kind
    jobs: list[tuple[str, Literal["off", "bf16", "fp16"], int]] = [(kind, "off", 0)]
    if kind == "cuda":
        jobs += [("cpu", "off", 0), ("cuda", "bf16", 0), ("cuda", "fp16", 0), ("cuda", "off", 1), ("cuda", "off", 2)]
    else:
        answer.skip("CPU against GPU, bf16, fp16", "the device is a CPU, which always trains in float32")
    found: dict[tuple[str, str, int], float] = {}
    slowest_s = 0.0
    for job in jobs:
        place, amp, seed = job
        head: dict[str, Any] = {"device": place, "amp": amp, "seed": seed}
        if place == "cuda" and setting.left_s < 1.3 * slowest_s:
            answer.skip(f"training on {place}, amp {amp}, seed {seed}", "no time is left for it")
            continue
        started = time.monotonic()
        try:
            # a CPU that is too slow for this must leave time for the other runs
            budget_s = setting.left_s * (0.6 if place == "cpu" and kind == "cuda" else 1.0) - _EVALUATION_S
            row = _train(setting, folder, recipe.with_(amp=amp), place, seed, budget_s)
        except Exception as error:  # noqa: BLE001 - a run that fails is its own answer
            row = {"failed": one_line(error)}
        else:
            found[job] = row["metrics"]["ap"]
        if place == "cuda":
            slowest_s = max(slowest_s, time.monotonic() - started)
        answer.add("trainings", {**head, **row})
    answer.put(**_summary(found))
    texts = [f"{place}, amp {amp}, seed {seed}: AP {ap:.3f}" for (place, amp, seed), ap in found.items()]
    return "; ".join(texts) if texts else "no training finished"


def _summary(found: dict[tuple[str, str, int], float]) -> dict[str, Any]:
    """The difference between the devices beside that between seeds, which is what it has to be judged by."""
    facts: dict[str, Any] = {}
    gpu, cpu = found.get(("cuda", "off", 0)), found.get(("cpu", "off", 0))
    if gpu is not None and cpu is not None:
        facts["ap_gpu_minus_cpu_same_seed"] = gpu - cpu
    seeds = [ap for (place, amp, _), ap in found.items() if place == "cuda" and amp == "off"]
    if len(seeds) > 1:
        facts["ap_range_over_gpu_seeds"] = max(seeds) - min(seeds)
    return facts


def _train(
    setting: Setting, folder: CocoFolder, recipe: Recipe, place: str, seed: int, budget_s: float
) -> dict[str, Any]:
    deadline = time.monotonic() + budget_s

    def watch(step: StepLog) -> None:
        if time.monotonic() > deadline:
            raise OverTimeError(f"stopped for time in step {step.step} of {step.steps}, epoch {step.epoch}")

    device = setting.place if place == "cuda" else torch.device("cpu")
    threads = torch.get_num_threads()
    if place == "cpu":
        torch.set_num_threads(min(_CPU_THREADS, threads))
    try:
        torch.manual_seed(seed)
        # built on the CPU: the same first weights wherever it is trained
        detector = build_detector(Architecture.parse(NANO_BASELINE), len(folder.classes))
        out_dir = setting.scratch / f"trained-{place}-{recipe.amp}-{seed}"
        result = fit(detector, folder.split("train"), recipe, seed=seed, device=device, out_dir=out_dir, on_step=watch)
        started = time.perf_counter()
        width, height = detector.input_size
        metrics = evaluate(eager_detect(detector, device), folder.split("val"), width, height, 16)
        return {
            "cpu_threads": torch.get_num_threads(),
            "epochs": result.epochs,
            "seconds": result.seconds,
            "images_per_s": [log.images_per_s for log in result.history],
            "losses": [log.loss for log in result.history],
            "evaluation_s": time.perf_counter() - started,
            "metrics": metrics.as_dict(),
        }
    finally:
        torch.set_num_threads(threads)
