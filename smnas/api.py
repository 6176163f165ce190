"""Everything the commands do, as functions: values in, values out, nothing printed.

The arguments have the names of the commands' options. Everything resumes: the same call continues where a killed one
stopped, and returns at once where all is done. ``on_progress`` is called with a phase, how much of it is done, of how
much (None where that is unknown), and the current item; notes go to the logger ``smnas``.
"""

import logging
import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from profiler.errors import UserError
from smnas.durations import seconds_of
from smnas.search.study.run_folder import RunFolder
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space

if TYPE_CHECKING:
    from profiler.backends.base import Backend
    from profiler.measuring.build_variance import BuildVariance
    from profiler.table.latency_table import LatencyTable
    from profiler.timing.measurement import TimingSettings
    from smnas.data.coco import CocoFolder
    from smnas.deploy.export import ExportReport
    from smnas.evaluation.coco_eval import CocoMetrics
    from smnas.inference.detector import Detector
    from smnas.inference.results import DetectReport, FrameResult, ImageResult
    from smnas.latency.audit import Audit
    from smnas.latency.detector_latency import DetectorLatency
    from smnas.latency.profiling import Measured
    from smnas.models.detector import Detector as Network
    from smnas.scoring.base import Scorer, ScoringProgress
    from smnas.scoring.by_name import AnyScorer
    from smnas.scoring.workers.processes import ScorerPool
    from smnas.search.context import SearchContext
    from smnas.search.progress import SearchEvent
    from smnas.search.ranking.ranking import Ranking, RankingRow
    from smnas.search.ranking.recommendation import Recommendation
    from smnas.search.strategies.base import StrategyKind
    from smnas.search.strategies.by_name import AnyStrategy
    from smnas.search.study.settings import SearchSettings
    from smnas.space.preset import Space
    from smnas.training.curve import EpochLog
    from smnas.training.recipe import Recipe

__all__ = [
    "DEFAULT_SCORE",
    "Evaluation",
    "OnProgress",
    "Profile",
    "SearchRun",
    "TrainingRun",
    "build",
    "build_engines",
    "detect",
    "estimate",
    "evaluate",
    "export",
    "measured",
    "profile",
    "report",
    "search",
    "train",
]

StrPath = str | Path
OnProgress = Callable[[str, float, float | None, str], None]
"""Called with a phase, how much of it is done, of how much (None: unknown), and the current item."""

DEFAULT_SCORE = 0.3
"""Lowest score of a detection that counts, where none is given."""

_EVALUATED_AT_ONCE = 8
_IMAGES_COMPARED = 16
_FILE_PRECISIONS = ("fp32", "fp16", "int8")  # of the ONNX files that a search ends with
_CLUSTER_WORKERS = 8  # training runs at once on a cluster, by default
_FINISHING = {"export": "exporting", "evaluate": "evaluating files", "time": "timing files"}
_PHASES = {"train": "epoch", "evaluate": "evaluating, %"}

_log = logging.getLogger(__name__)


def _quiet(phase: str, done: float, total: float | None, text: str = "") -> None:
    pass


# ---------------------------------------------------------------------------------------------------------- detectors


def build(architecture: "Architecture | str", classes: int, **options: Any) -> "Network":
    """Build a detector with freshly initialised weights: a ``torch.nn.Module``.

    Args:
        architecture: As a string or as a value.
        classes: Object classes, without the background.
        options: ``norm``, ``stem`` and ``device`` of :func:`smnas.models.build.build_detector`.

    Raises:
        UserError: it is no architecture, or there are no classes.
    """
    from smnas.models.build import build_detector

    return build_detector(_architecture(architecture), classes, **options)


@dataclass(frozen=True)
class TrainingRun:
    """A finished training run.

    Attributes:
        folder: With its checkpoint, curve and metrics.
        architecture: Of the detector.
        checkpoint: The trained weights.
        epochs: Epochs trained.
        seconds: Training time, over all processes that took part.
        metrics: The 12 COCO numbers of the validation images, 0 to 1; NaN where undefined.
        first: Whether this process is the one that reports, of those that ``torchrun`` started.
    """

    folder: Path
    architecture: Architecture
    checkpoint: Path | None
    epochs: int
    seconds: float
    metrics: Mapping[str, float]
    first: bool = True

    @property
    def ap(self) -> float:
        """AP over IoU thresholds .50 to .95, 0 to 1."""
        return self.metrics["ap"]

    def detector(self, **options: Any) -> "Detector":
        """The trained detector, ready to use; options as of :class:`~smnas.inference.detector.Detector`."""
        from smnas.inference.detector import Detector

        return Detector(self.folder, **options)


def train(
    arch: "Architecture | str",
    data: StrPath,
    out: StrPath,
    *,
    epochs: int | None = None,
    recipe: "str | Path | Recipe" = "nano",
    batch_size: int | None = None,
    evaluate_every: int | None = None,
    tensorboard: bool = False,
    pretrained: StrPath | None = None,
    norm: str | None = None,
    stem: str | None = None,
    drop_bad_boxes: bool = False,
    drop_bad_images: bool = False,
    seed: int = 0,
    on_epoch: "Callable[[EpochLog], None] | None" = None,
    on_progress: OnProgress = _quiet,
) -> TrainingRun:
    """Train one architecture from scratch, or resume its training run; evaluate it on the validation images.

    Args:
        arch: What to train.
        data: COCO-format folder.
        out: Where checkpoint, curve and metrics go.
        epochs: Passes over the data; by default the recipe's.
        recipe: Name, .toml file or value.
        batch_size: Images per step; by default the recipe's.
        evaluate_every: Epochs between evaluations on the way; 0: only at the end.
        tensorboard: Write TensorBoard logs to ``out/tensorboard``.
        pretrained: ``state_dict`` file of torchvision's network of the backbone's shape.
        norm: ``gn-ws`` (the default) or ``bn`` (the default with ``pretrained``).
        stem: ``deep`` (the default) or ``imagenet`` (the default with ``pretrained``).
        drop_bad_boxes: Leave out boxes without a size or outside their image.
        drop_bad_images: Leave out images that are missing, damaged or of another size than annotated.
        seed: Random seed.
        on_epoch: Called after every epoch.
        on_progress: Called while training and evaluating.

    Raises:
        UserError: an argument or the data breaks a rule, or ``out`` holds another run.
        ScoringFailedError: training diverges or breaks.
    """
    from smnas.data.coco import box_notes
    from smnas.models.layers import NormKind
    from smnas.models.pretrained import read_weights
    from smnas.scoring.trained_ap import TrainedAP
    from smnas.space.convolutions import StemKind
    from smnas.training.board import Board
    from smnas.training.checkpoint import CHECKPOINT_FILE, load_checkpoint
    from smnas.training.replicas import replicas_from_environment

    architecture, out = _architecture(arch), Path(out)
    settings = _recipe(recipe).with_(epochs=epochs, batch_size=batch_size, evaluate_every=evaluate_every)
    weights = None if pretrained is None else read_weights(Path(pretrained))
    norm_kind = _one_of("--norm", NormKind, norm or ("gn-ws" if weights is None else "bn"))
    stem_kind = _one_of("--stem", StemKind, stem or ("deep" if weights is None else "imagenet"))
    with ExitStack() as stack:
        replicas, device = stack.enter_context(replicas_from_environment())
        folder = _open_data(data, drop_bad_boxes=drop_bad_boxes, drop_bad_images=drop_bad_images, note=replicas.first)
        images = len(folder.split("train"))
        if batch_size is not None and batch_size > images:
            raise UserError(
                f"--batch-size must be at most the number of training images, {images}, but got {batch_size}"
            )
        size = architecture.input_width, architecture.input_height
        small = box_notes(folder.split("train"), [size], settings.augmentation.min_side_px)
        before = out / CHECKPOINT_FILE
        finished = list(load_checkpoint(before).history) if before.exists() else []
        if replicas.first and not finished:
            _check_images(folder, on_progress)
        if replicas.first:
            _note(small)
            together = f" in {replicas.count} processes" if replicas.count > 1 else ""
            _log.info("training on %s%s: %d images, %d epochs", device, together, images, settings.epochs)
        board = stack.enter_context(Board(out / "tensorboard", finished)) if tensorboard and replicas.first else None

        def end_epoch(log: "EpochLog") -> None:
            if board is not None:
                board.add(log)
            if on_epoch is not None and replicas.first:
                on_epoch(log)

        def step(progress: "ScoringProgress") -> None:
            loss = "" if progress.loss is None else f"loss {progress.loss:.3f}  "
            total = progress.epochs if progress.phase == "train" else 100
            text = f"{loss}{progress.images_per_s:.0f} images/s"
            on_progress(_PHASES[progress.phase], progress.done * total, total, text)

        scorer = TrainedAP(
            folder,
            settings,
            device,
            norm=norm_kind,
            stem=stem_kind,
            pretrained=weights,
            replicas=replicas,
            on_epoch=end_epoch,
        )
        found = scorer.score(
            architecture,
            seed=seed,
            epochs=settings.epochs,
            out_dir=out,
            on_progress=step if replicas.first else None,
        )
    return TrainingRun(
        out, architecture, found.checkpoint, found.epochs, found.seconds, found.metrics, first=replicas.first
    )


@dataclass(frozen=True)
class Evaluation:
    """A model's accuracy.

    Attributes:
        model: The file that was run.
        images: Validation images.
        metrics: The 12 COCO numbers.
    """

    model: Path
    images: int
    metrics: "CocoMetrics"

    @property
    def ap(self) -> float:
        """AP over IoU thresholds .50 to .95, 0 to 1."""
        return self.metrics.ap


def evaluate(
    model: StrPath,
    data: StrPath,
    *,
    batch: int | None = None,
    drop_bad_boxes: bool = False,
    drop_bad_images: bool = False,
    on_progress: OnProgress = _quiet,
) -> Evaluation:
    """Evaluate a model on the validation images by pycocotools; an exported file is run as it is.

    Args:
        model: Checkpoint, ONNX file or engine; or the folder of a search or of a training run.
        data: COCO-format folder.
        batch: Images per call; by default 8, or the nearest number of whole batches of an exported file.
        drop_bad_boxes: Leave out boxes without a size or outside their image.
        drop_bad_images: Leave out images that are missing, damaged or of another size than annotated.
        on_progress: Called while evaluating.

    Raises:
        UserError: the model or the data can not be read.
    """
    from smnas.deploy.accuracy import evaluate_model
    from smnas.inference.model_file import model_file
    from smnas.inference.runtime import load_model
    from smnas.training.device import training_device

    file = model_file(Path(model))
    network = load_model(file, device=training_device())
    split = _open_data(data, drop_bad_boxes=drop_bad_boxes, drop_bad_images=drop_bad_images).split("val")
    own = network.metadata.batch
    at_once = batch or own * max(1, _EVALUATED_AT_ONCE // own)
    metrics = evaluate_model(network, split, at_once, lambda done, total: on_progress("evaluating", done, total, ""))
    return Evaluation(file, len(split), metrics)


def export(
    model: StrPath,
    out: StrPath,
    *,
    data: StrPath | None = None,
    format: str = "onnx",  # noqa: A002  the option's name
    precision: str = "fp32",
    batch: int = 1,
    compute_capability: Sequence[str] = (),
    max_ap_drop: float = 0.01,
    drop_bad_boxes: bool = False,
    drop_bad_images: bool = False,
) -> "ExportReport":
    """Export a trained checkpoint to one file, compared with the checkpoint's own outputs.

    Args:
        model: Checkpoint, or the folder of a search or of a training run.
        out: The file to write: .onnx, or .engine for an engine.
        data: COCO-format folder to compare, calibrate and measure AP on; by default generated shapes.
        format: ``onnx``, ``tensorrt-rtx`` or ``tensorrt``.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        batch: Images of one run of the file.
        compute_capability: GPUs that a ``tensorrt-rtx`` engine must run on, such as ``8.9``.
        max_ap_drop: Largest loss of AP against the checkpoint, with ``data``.
        drop_bad_boxes: Leave out boxes without a size or outside their image.
        drop_bad_images: Leave out images that are missing, damaged or of another size than annotated.

    Raises:
        UserError: an argument, the model or the data breaks a rule.
        ExportMismatchError, AccuracyLossError: the file finds something else; none is left.
    """
    from smnas.deploy.export import IMAGES_CALIBRATED, export_detector
    from smnas.inference.model_file import model_file

    file = model_file(Path(model), prefer="checkpoint")
    folder = None if data is None else _open_data(data, drop_bad_boxes=drop_bad_boxes, drop_bad_images=drop_bad_images)
    dataset = None if folder is None else folder.split("val")
    calibrated = folder.split("train") if folder is not None and precision == "int8" else None
    return export_detector(
        file,
        Path(out),
        file_format=format.replace("_", "-"),
        precision=precision,
        batch=batch,
        verify_images=[] if dataset is None else dataset.spread(max(_IMAGES_COMPARED, batch)),
        calibration_images=[] if calibrated is None else calibrated.spread(IMAGES_CALIBRATED),
        dataset=dataset,
        max_ap_drop=max_ap_drop,
        capabilities=compute_capability,
    )


def detect(
    model: StrPath,
    images: Sequence[StrPath] = (),
    *,
    camera: int | None = None,
    score: float | None = None,
    batch: int | None = None,
    workers: int = 2,
    quick_decode: bool = False,
    cuda_graph: bool = False,
    frames: int | None = None,
    out: StrPath | None = None,
    coco: StrPath | None = None,
    annotations: StrPath | None = None,
    keep_frames: bool = True,
    on_image: "Callable[[ImageResult, int, int], None] | None" = None,
    on_frame: "Callable[[FrameResult, str, int | None], None] | None" = None,
) -> "DetectReport":
    """Find objects in image and video files, and through a camera; :class:`smnas.Detector` takes images in memory.

    Args:
        model: Checkpoint, ONNX file or engine; or the folder of a search or of a training run.
        images: Images, videos, folders of them, or patterns.
        camera: A camera by its number, until ``frames``.
        score: Lowest score of a detection; by default 0.3, and 0 with ``coco``.
        batch: Images of one call of the network; by default the file's own.
        workers: Threads that decode, resize and draw while the network runs; 0: in turn.
        quick_decode: Decode large JPEG files at a fraction of their size; boxes move a little.
        cuda_graph: Run a checkpoint or an engine as CUDA graphs.
        frames: End a video or camera after this many frames.
        out: Draw the boxes on copies of images and videos in this folder.
        coco: Write COCO results of the images to this file; needs ``annotations``.
        annotations: COCO annotation file with the images' ids.
        keep_frames: The report holds every frame's detections.
        on_image: Called with every image's result, images done and their number.
        on_frame: Called with every frame's result, its video and the number of frames, where that is known.

    Raises:
        UserError: an argument breaks a rule, or the model can not be read. A bad image is an error of its own result.
    """
    if not images and camera is None:
        raise UserError("something to look at must be given: IMAGE... or --camera N, but got neither")
    if (coco is None) != (annotations is None):
        raise UserError("--coco FILE and --annotations FILE need each other: image ids are in the annotation file")
    from smnas.inference.coco_results import ListedImages, require_place
    from smnas.inference.detect import detect_inputs
    from smnas.inference.inputs import find_inputs
    from smnas.inference.model_file import model_file
    from smnas.inference.pipeline import DetectOptions
    from smnas.inference.runtime import load_model
    from smnas.training.device import training_device

    inputs = find_inputs(images, camera=camera)
    if inputs.remark is not None:
        _log.info("%s", inputs.remark)
    if coco is not None and (inputs.videos or camera is not None):
        raise UserError("COCO results are of images, but got a video or camera beside --coco")
    if coco is not None:
        require_place(Path(coco))
    lowest = score if score is not None else (DEFAULT_SCORE if coco is None else 0.0)
    network = load_model(model_file(Path(model)), device=training_device(), cuda_graph=cuda_graph)
    listed = None if annotations is None else ListedImages(Path(annotations), inputs.images, network)
    found = detect_inputs(
        network,
        inputs,
        DetectOptions(lowest, batch, workers, quick_decode),
        out_dir=None if out is None else Path(out),
        sizes=None if listed is None else listed.sizes,
        max_frames=frames,
        keep_frames=keep_frames,
        on_image=on_image,
        on_frame=on_frame,
    )
    if listed is not None and coco is not None:
        _note(filter(None, [listed.write(found.images, Path(coco))]))
    return found


# ------------------------------------------------------------------------------------------------------------ latency


@dataclass(frozen=True)
class Profile:
    """What a profile measured.

    Attributes:
        table: The latency table, which holds every row.
        device: Where it was measured.
        backend: What ran the blocks.
        backend_version: Of it.
        precision: Number format.
        batch: Images a run.
        threads: CPU threads.
        classes: Object classes of the detectors.
        detectors: Detectors covered.
        blocks: What measuring their blocks came to.
        cold: The same with flushed caches.
        builds: How far several builds of the same block differ.
        audit: Predicted against measured latency of detectors that the prediction was not fitted on.
    """

    table: Path
    device: str
    backend: str
    backend_version: str
    precision: str
    batch: int
    threads: int
    classes: int
    detectors: int
    blocks: "Measured"
    cold: "Measured | None" = None
    builds: "Sequence[BuildVariance] | None" = None
    audit: "Audit | None" = None


def profile(
    preset: str | None = None,
    *,
    arch: "Sequence[Architecture | str]" = (),
    sample: int | None = None,
    device: str = "local",
    backend: str = "onnxruntime",
    precision: str = "fp32",
    batch: int = 1,
    threads: int = 1,
    classes: int = 80,
    table: StrPath | None = None,
    audit: int = 0,
    time_limit: str | float | None = None,
    cold: bool = False,
    builds: int | None = None,
    seed: int = 0,
    timing: "TimingSettings | None" = None,
    on_progress: OnProgress = _quiet,
) -> Profile:
    """Measure the blocks of detectors on a device into a latency table; what it holds is not measured again.

    Args:
        preset: Cover this space: ``nano`` (the default), ``small``, ``paper`` or a .toml file.
        arch: Cover these architectures instead.
        sample: Cover a random sample of the space; by default all structural choices.
        device: ``local``, ``cpu``, or a GPU such as ``v100``.
        backend: What runs the blocks.
        precision: Number format of the network.
        batch: Images per run.
        threads: CPU threads that a measured run may use.
        classes: Object classes of the detectors.
        table: Latency table, made if it is missing; by default ``latency-DEVICE.db``.
        audit: Compare predicted with measured latency on this many whole detectors.
        time_limit: Start nothing after this long: seconds, or as in ``10m``. The most useful blocks come first.
        cold: Measure with flushed caches too, in rows that no prediction reads.
        builds: Build a sample of blocks this many times, to see how far the builds differ.
        seed: Random seed.
        timing: Accuracy and limits of one measurement.
        on_progress: Called while measuring.

    Raises:
        UserError: an argument breaks a rule.
        DeviceNotPresentError: this machine lacks the GPU; :func:`measured` reads a table from elsewhere.
    """
    from profiler.table.latency_table import LatencyTable
    from smnas.latency import profiling
    from smnas.latency.detector_latency import DetectorLatency

    limit_s = None if time_limit is None else seconds_of(time_limit)
    until = math.inf if limit_s is None else time.monotonic() + limit_s
    space = load_space(preset or "nano")
    wanted = [_architecture(one) for one in arch] or profiling.structures_of(space, sample, seed)
    runner = _backend(device, backend, precision, threads)

    def left_s() -> float | None:
        return None if limit_s is None else max(0.0, until - time.monotonic())

    def in_time() -> bool:
        return left_s() != 0.0

    with LatencyTable(Path(table or f"latency-{device}.db")) as rows:
        latency = DetectorLatency(classes, runner, rows, precision=precision, batch=batch, seed=seed, timing=timing)
        at = partial(on_progress, "detectors covered")
        if arch or sample is not None:
            blocks = profiling.measure(wanted, latency, at, budget_s=limit_s)
        else:
            blocks = profiling.measure_preset(space.name, wanted, latency, at, budget_s=limit_s)
        flushed = built = audited = None
        if cold:
            at = partial(on_progress, "detectors covered with flushed caches")
            flushed = profiling.measure(wanted, latency, at, budget_s=left_s(), caches="cold")
        if builds is not None:
            at = partial(on_progress, "blocks built again")
            built = profiling.rebuild(wanted, latency, builds, seed, at, in_time)
        if audit:
            at = partial(on_progress, "detectors audited")
            audited = profiling.audit(space, audit, latency, seed, at, in_budget=in_time)
        return Profile(
            rows.path,
            runner.device.name,
            runner.name,
            runner.version,
            precision,
            batch,
            threads,
            classes,
            len(wanted),
            blocks,
            flushed,
            built,
            audited,
        )


def measured(
    device: str, table: StrPath, *, arch: "Sequence[Architecture | str]" = (), classes: int = 80
) -> dict[str, Any]:
    """What a latency table holds of a GPU that is elsewhere, by backend and precision.

    Args:
        device: The GPU, such as ``v100``.
        table: A latency table that was filled there.
        arch: Sum the blocks of these architectures, None where one is missing or failed.
        classes: Object classes of the detectors.

    Raises:
        UserError: the name is unknown, or the table holds nothing of that GPU.
    """
    from dataclasses import asdict

    from profiler.devices import gpu_sheets, matching_names, named_sheet
    from profiler.prediction.estimate import ESTIMATE_BACKEND
    from profiler.prediction.predict import FailedPartError, MissingPartsError, sum_parts
    from profiler.table.latency_table import LatencyTable
    from smnas.latency.workloads import detector_workloads
    from smnas.report.latency_data import read_view

    sheet = named_sheet(device)
    if sheet is None:
        raise UserError(f"a GPU is one of {', '.join(gpu_sheets())}, but got {device!r}")
    targets = []
    with LatencyTable(Path(table), create=False) as rows_of:
        held = [target for target in rows_of.targets() if target.backend != ESTIMATE_BACKEND]
        names = matching_names(sheet, [target.device for target in held])
        for target in (target for target in held if target.device in names):
            facts, rows = read_view(rows_of, target).facts, rows_of.current(target)
            sums: dict[str, float | None] = {}
            for architecture in map(_architecture, arch):
                try:
                    keys = [part.key for part in detector_workloads(architecture, classes, target.batch)]
                    sums[str(architecture)] = sum_parts(keys, rows).ms
                except (MissingPartsError, FailedPartError):
                    sums[str(architecture)] = None
            counts = {"blocks": facts.blocks, "wholes": facts.wholes, "failed": len(facts.failed)}
            targets.append({**asdict(target), **counts, "disturbed": facts.disturbed, "sums_ms": sums})
    if not targets:
        raise UserError(f"{table} must hold measurements of {sheet.name}, as that GPU is not here, but it has none")
    return {"gpu": sheet.name, "table": Path(table), "classes": classes, "targets": targets}


def estimate(
    device: str,
    preset: str | None = None,
    *,
    arch: "Sequence[Architecture | str]" = (),
    sample: int | None = None,
    precision: str = "fp32",
    batch: int = 1,
    classes: int = 80,
    table: StrPath | None = None,
    seed: int = 0,
    on_progress: OnProgress = _quiet,
) -> dict[str, Any]:
    """Roofline estimates for a GPU of the data sheets, labelled and kept in the table apart from every measurement.

    Arguments are those of :func:`profile`.

    Raises:
        UserError: there is no data sheet of that name, or the precision can not be estimated.
    """
    from smnas.latency import profiling

    file = Path(table or f"latency-{device}.db")
    at = partial(on_progress, "detectors estimated")
    return profiling.estimate(device, file, _covered(preset, arch, sample, seed), classes, precision, batch, at)


def build_engines(
    folder: StrPath,
    preset: str | None = None,
    *,
    arch: "Sequence[Architecture | str]" = (),
    sample: int | None = None,
    device: str = "local",
    backend: str = "tensorrt-rtx",
    precision: str = "fp32",
    batch: int = 1,
    classes: int = 80,
    compute_capability: Sequence[str] = (),
    workers: int = 1,
    seed: int = 0,
    on_progress: OnProgress = _quiet,
) -> dict[str, Any]:
    """Build the blocks of detectors as TensorRT-RTX engines, for GPUs that this machine lacks.

    Args:
        folder: Where engines and their manifests go; what is there is not built again.
        compute_capability: GPUs to build for, such as ``8.9``; by default that of ``device``, or all.
        workers: Processes that build.
        preset: Space whose blocks are built.
        arch: Architectures instead.
        sample: Size of a random sample of the space.
        device: GPU of the data sheets, or ``local``.
        backend: ``tensorrt-rtx``.
        precision: Number format.
        batch: Images per run.
        classes: Object classes of the detectors.
        seed: Random seed of the sample.
        on_progress: Called while building.

    Raises:
        UserError: another backend, or an unknown GPU, precision or capability.
    """
    from smnas.latency import engines

    return engines.build_engines(
        Path(folder),
        _covered(preset, arch, sample, seed),
        partial(on_progress, "detectors covered"),
        backend=backend.replace("-", "_"),
        gpu=device,
        capabilities=compute_capability,
        precision=precision,
        classes=classes,
        batch=batch,
        workers=workers,
    )


def _covered(
    preset: str | None, arch: "Sequence[Architecture | str]", sample: int | None, seed: int
) -> list[Architecture]:
    from smnas.latency.profiling import structures_of

    space = load_space(preset or "nano")
    return [_architecture(one) for one in arch] or structures_of(space, sample, seed)


def _backend(device: str, backend: str, precision: str, threads: int) -> "Backend":
    from profiler.backends import get_backend
    from profiler.backends.base import check_precision
    from profiler.devices import resolve_device

    found = get_backend(backend, resolve_device(device), threads=threads)
    check_precision(found, precision)
    return found


# ----------------------------------------------------------------------------------------------------------- searches


class SearchRun:
    """A search's run folder, finished or not.

    Args:
        folder: As :func:`search` or ``smnas search --out`` wrote it.
    """

    def __init__(self, folder: StrPath) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"SearchRun({str(self.folder)!r})"

    @cached_property
    def ranking(self) -> "Ranking":
        """The detectors, best first, with notes and the recommendation for other latency limits.

        Raises:
            RunFolderError: the folder holds none yet, or it can not be read.
        """
        from smnas.search.ranking.ranking import read_ranking

        return read_ranking(self.folder)

    @property
    def recommendation(self) -> "Recommendation | None":
        """The detector to deploy, and why; None while nothing is trained."""
        return self.ranking.recommendation

    @property
    def front(self) -> "tuple[RankingRow, ...]":
        """The rows that no other one beats in both AP and latency, best AP first."""
        return tuple(row for row in self.ranking.rows if row.on_front)

    def detector(self, **options: Any) -> "Detector":
        """The recommended detector, ready to use; options as of :class:`~smnas.inference.detector.Detector`."""
        from smnas.inference.detector import Detector

        return Detector(self.folder, **options)

    def report(self, out: StrPath | None = None, *, data: StrPath | None = None, table: StrPath | None = None) -> Path:
        """Write the report, see :func:`report`."""
        return report(self.folder, out, data=data, table=table)


def search(
    out: StrPath,
    data: StrPath | None = None,
    *,
    device: str = "local",
    latency_ms: float | None = None,
    preset: str = "nano",
    max_parameters: int | None = None,
    strategy: "AnyStrategy | None" = None,
    scorer: "AnyScorer" = "ap",
    prior: str | None = None,
    trials: tuple[int, int] = (10, 10),
    recipe: "str | Path | Recipe | None" = None,
    epochs: int | None = None,
    final_epochs: int | None = None,
    final_seeds: int = 1,
    top: int = 3,
    table: StrPath | None = None,
    backend: str = "onnxruntime",
    precision: str = "fp32",
    threads: int = 1,
    workers: int | None = None,
    ray: str | None = None,
    generation: int | None = None,
    time_limit: str | float | None = None,
    storage: str | None = None,
    warm_start: Sequence[StrPath] = (),
    drop_bad_boxes: bool = False,
    drop_bad_images: bool = False,
    seed: int = 0,
    calibration: int = 3,
    timing: "TimingSettings | None" = None,
    deploy: bool = True,
    on_event: "Callable[[SearchEvent], None] | None" = None,
    on_training: "Callable[[int, ScoringProgress], None] | None" = None,
    on_progress: OnProgress = _quiet,
) -> SearchRun:
    """Find the detector to deploy on a device, for a data set, within a latency limit; or resume that search.

    Args:
        out: Run folder.
        data: COCO-format folder; by default coloured shapes, generated in ``out/data``.
        device: ``local``, ``cpu``, or a GPU such as ``v100``.
        latency_ms: Latency limit of the recommended detector.
        preset: Search space: ``nano``, ``small``, ``paper`` or a .toml file.
        max_parameters: Train nothing larger than this.
        strategy: How candidates are proposed: a name, or one's own (:mod:`smnas.search.strategies.base`).
        scorer: How candidates are scored: a name, or one's own (:mod:`smnas.scoring.base`).
        prior: Of every few proposals train the one with the highest value of this scorer.
        trials: Candidates of stage 1 (structural) and stage 2 (modular).
        recipe: Training recipe: name, .toml file or value; by default the space's.
        epochs: Epochs of each candidate; by default the recipe's.
        final_epochs: Epochs of the final phase, 0 for none; by default twice ``epochs``.
        final_seeds: Seeds of the final phase, for AP with a spread.
        top: Candidates that the final phase trains again and that are exported.
        table: Latency table; by default ``out/latency.db``.
        backend: What runs the network when latency is measured.
        precision: ``fp32``, ``fp16`` or ``int8``, of latencies and exported files.
        threads: CPU threads that a measured run may use.
        workers: Training runs at once, each in a process; by default one a GPU, or two on a CPU.
        ray: Address of a Ray cluster to train on.
        generation: Candidates proposed at once; by default the workers, at least 2.
        time_limit: Stop proposing in time for the final phase: seconds, or as in ``8h``.
        storage: Database URL of the study, instead of ``out/study.db``.
        warm_start: Run folders whose training runs the search begins with.
        drop_bad_boxes: Leave out boxes without a size or outside their image.
        drop_bad_images: Leave out images that are missing, damaged or of another size than annotated.
        seed: Random seed.
        calibration: Whole detectors, beside the baseline, that latency predictions are calibrated on.
        timing: Accuracy and limits of one measurement.
        deploy: Export the best, and rank again by what the files do.
        on_event: Called after every trial and before every training run.
        on_training: Called with a trial's number, for progress inside its training run.
        on_progress: Called while something else is done.

    Raises:
        UserError: an argument, the data or the run folder breaks a rule.
    """
    from profiler.table.latency_table import LatencyTable
    from smnas import __version__
    from smnas.data.coco import box_notes
    from smnas.report.page import write_report
    from smnas.search.context import SearchContext
    from smnas.search.method import choose_method
    from smnas.search.study.settings import (
        DataFacts,
        SearchSettings,
        prepare_run_folder,
        read_settings,
        space_of_run,
        space_settings,
    )
    from smnas.search.study.storage import open_storage, storage_url, study_name
    from smnas.search.study.warm_start import warm_candidates
    from smnas.training.device import cpu_cores, training_devices

    until = math.inf if time_limit is None else time.monotonic() + seconds_of(time_limit)
    if latency_ms is not None and not 0 < latency_ms < math.inf:
        raise UserError(f"--latency-ms must be a number above 0, but got {latency_ms:g}")
    files = RunFolder(out)
    # What can be refused is refused before anything is written.
    before = read_settings(files.path) if files.settings.exists() else None
    space = space_of_run(preset, before)
    method = choose_method(strategy, scorer, prior, final_epochs)
    runner = _backend(device, backend, precision, threads)
    if precision not in _FILE_PRECISIONS:
        raise UserError(f"--precision of a search must be one of {', '.join(_FILE_PRECISIONS)}, but got {precision!r}")
    training = _recipe(recipe or space.recipe)
    if storage is not None:
        storage_url(storage)
    workers = workers or (_CLUSTER_WORKERS if ray is not None else _workers())
    if ray is not None:
        from smnas.scoring.workers.ray import import_ray

        import_ray()
    if table is not None:
        LatencyTable(Path(table)).close()
    root = data or _generated(files.data, on_progress)
    folder = _open_data(root, drop_bad_boxes=drop_bad_boxes, drop_bad_images=drop_bad_images)
    if before is None:
        _check_images(folder, on_progress)
        _note(box_notes(folder.split("train"), space.inputs, training.augmentation.min_side_px))
    train_images = len(folder.split("train"))
    training = method.recipe(training, train_images)
    settings = SearchSettings(
        smnas=__version__,
        **space_settings(preset, space),
        data=DataFacts(
            root=str(folder.root.resolve()),
            classes=folder.classes,
            train_images=train_images,
            val_images=len(folder.split("val")),
            drop_bad_boxes=drop_bad_boxes,
            drop_bad_images=drop_bad_images,
        ),
        device=runner.device.name,
        backend=runner.name,
        precision=precision,
        threads=threads,
        recipe=training.model_dump(mode="json"),
        epochs=epochs or training.epochs,
        seed=seed,
        latency_ms=latency_ms,
        max_parameters=max_parameters,
        storage=storage,
        study=study_name(files.path, storage) if before is None else before.study,
        warm_start=tuple(str(Path(run).resolve()) for run in warm_start),
        **method.settings(*trials),
        versions=_versions(runner),
        generation=generation or (max(2, workers) if before is None else before.generation),
        training_threads=max(1, cpu_cores() // workers) if before is None else before.training_threads,
        top=top,
        final_epochs=2 * (epochs or training.epochs) if final_epochs is None else final_epochs,
        final_seeds=final_seeds,
    )
    if before is None:
        warm_candidates(settings, space)
    if storage is not None:
        open_storage(files.path, storage).engine.dispose()
    if prepare_run_folder(files.path, settings):
        _log.info("resuming %s", files.path)
    devices = training_devices()
    with LatencyTable(Path(table or files.table)) as rows:
        _log.info(
            "searching %s (%s structures), runs at once: %d, each on %d CPU threads%s, latency on %s in %s %s",
            settings.preset,
            f"{space.structural_size():,}",
            workers,
            settings.training_threads,
            "" if devices == ("cpu",) else f" and {' or '.join(devices)}",
            runner.device.name,
            runner.name,
            runner.version,
        )
        latency = _calibrated(settings, space, runner, rows, calibration, timing)
        place = partial(_pool, folder, training, settings, workers, ray)
        _loop(
            SearchContext(
                files.path,
                settings,
                space,
                latency,
                time_limit_s=None if time_limit is None else until - time.monotonic(),  # calibrating took its part
                on_progress=partial(_prepared, on_progress),
            ),
            method.strategy,
            scorer,
            place,
            on_event,
            on_training,
        )
    if deploy:
        _deploy(files.path, folder, runner, on_progress)
    write_report(files.path, data_root=folder.root, table=None if table is None else Path(table))
    return SearchRun(files.path)


def report(
    run: StrPath, out: StrPath | None = None, *, data: StrPath | None = None, table: StrPath | None = None
) -> Path:
    """Write a run folder as one HTML page, also while the search is running.

    Args:
        run: The run folder.
        out: The page; by default ``RUN/report.html``.
        data: Data set for sample detections; by default where it was in the search.
        table: Latency table of the search; by default ``RUN/latency.db``.

    Returns:
        The page.

    Raises:
        UserError: the run folder, the data or the table can not be read.
    """
    from profiler.table.latency_table import LatencyTable
    from smnas.report.page import write_report

    # A page does without what has gone since the search, but not in silence without what was asked for.
    if table is not None:
        LatencyTable(Path(table), read_only=True).close()
    if data is not None:
        _open_data(data, drop_bad_boxes=True)
    return write_report(
        Path(run),
        None if out is None else Path(out),
        data_root=None if data is None else Path(data),
        table=None if table is None else Path(table),
    )


def _loop(
    context: "SearchContext",
    strategy: "StrategyKind",
    scorer: "AnyScorer",
    pool: "Callable[[AnyScorer], AbstractContextManager[ScorerPool]]",
    on_event: "Callable[[SearchEvent], None] | None",
    on_training: "Callable[[int, ScoringProgress], None] | None",
) -> None:
    """Run the search with the pools that its scorer needs: the final phase trains, whatever the search does."""
    from smnas.latency.workloads import detector_workloads
    from smnas.scoring.base import AP
    from smnas.scoring.by_name import get_scorer, quick_score
    from smnas.scoring.workers.processes import InProcess
    from smnas.search.run import run_search
    from smnas.search.study.candidate import Complexity

    classes = len(context.settings.data.classes)

    def complexity(architecture: Architecture) -> Complexity:
        workloads = detector_workloads(architecture, classes)
        return Complexity(sum(w.parameters for w in workloads), sum(w.flops for w in workloads))

    alone = context.settings.metric == AP
    with ExitStack() as stack:
        trainers = stack.enter_context(pool(scorer if alone else "ap"))
        if quick_score(scorer) is not None:
            scorers: ScorerPool = InProcess(cast("Scorer", get_scorer(scorer)))
        else:
            scorers = trainers if alone else stack.enter_context(pool(scorer))
        run_search(
            context,
            scorers=scorers,
            trainers=trainers,
            strategy=strategy,
            complexity=complexity,
            on_event=on_event,
            on_training=on_training,
        )


def _pool(
    folder: "CocoFolder",
    recipe: "Recipe",
    settings: "SearchSettings",
    workers: int,
    ray: str | None,
    scorer: "AnyScorer",
) -> "AbstractContextManager[ScorerPool]":
    """A cluster, worker processes, or for a single training run at a time this process."""
    from smnas.scoring.by_name import ScorerOnDevices
    from smnas.scoring.workers.processes import InProcess, Workers
    from smnas.training.device import training_devices

    devices, threads = training_devices(), settings.training_threads
    make_on = partial(
        ScorerOnDevices,
        scorer,
        folder.root.resolve(),
        recipe,
        drop_bad_boxes=settings.data.drop_bad_boxes,
        drop_bad_images=settings.data.drop_bad_images,
    )
    if ray is not None:
        from smnas.scoring.workers.ray import RayWorkers

        return RayWorkers(make_on, ray, threads, workers)
    if workers > 1:
        return Workers(make_on(devices), workers, threads)
    import torch

    torch.set_num_threads(threads)
    return nullcontext(InProcess(make_on(devices)(0)))


def _calibrated(
    settings: "SearchSettings",
    space: "Space",
    backend: "Backend",
    table: "LatencyTable",
    wholes: int,
    timing: "TimingSettings | None",
) -> "DetectorLatency":
    """A predictor that is calibrated on the baseline and random structures, the same for one seed."""
    from smnas.latency.detector_latency import DetectorLatency
    from smnas.latency.profiling import calibration_set

    latency = DetectorLatency(
        len(settings.data.classes),
        backend,
        table,
        precision=settings.precision,
        batch=settings.batch,
        seed=settings.seed,
        timing=timing,
    )
    measured = calibration_set(space, settings.seed, wholes)
    _log.info("measuring %d whole detectors and their blocks, to calibrate predictions", len(measured))
    for architecture, reason in latency.calibrate(measured).failed:
        _log.info("left out of the calibration: %s: %s", architecture, reason)
    return latency


def _deploy(run: Path, folder: "CocoFolder", backend: "Backend", on_progress: OnProgress) -> None:
    """Export the best, measure the files, rank again by what was measured."""
    from smnas.deploy.ranked import DeployEvent, deploy_ranking

    def on_event(event: DeployEvent) -> None:
        on_progress(_FINISHING[event.step], event.done, event.total, event.architecture)

    done = deploy_ranking(
        run, folder.split("val"), calibration=folder.split("train"), device=backend.device, on_event=on_event
    )
    for architecture, reason in done.failed:
        _log.info("could not be exported: %s: %s", architecture, reason)


def _prepared(on_progress: OnProgress, text: str, fraction: float | None) -> None:
    """What strategies and scorers prepare: a note where there is no fraction, else a phase."""
    if fraction is None:
        _log.info("%s", text)
    else:
        on_progress(text, 100 * fraction, 100, "")


def _generated(root: Path, on_progress: OnProgress) -> Path:
    from smnas.data.shapes import generate_shapes

    return generate_shapes(root, on_progress=lambda done, total: on_progress("generating images", done, total, ""))


def _workers() -> int:
    """One a GPU. On a CPU two, since two runs of one thread each are faster than one after the other with two."""
    from smnas.training.device import cpu_cores, training_devices

    devices = training_devices()
    return min(2, cpu_cores()) if devices == ("cpu",) else len(devices)


def _versions(backend: "Backend") -> dict[str, str]:
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, backend.name: backend.version}


# -------------------------------------------------------------------------------------------------------------- parts


def _architecture(text: "Architecture | str") -> Architecture:
    return text if isinstance(text, Architecture) else Architecture.parse(text)


def _recipe(recipe: "str | Path | Recipe") -> "Recipe":
    from smnas.training.recipe import load_recipe

    return load_recipe(str(recipe)) if isinstance(recipe, str | Path) else recipe


def _one_of(option: str, kinds: Any, name: str) -> Any:
    """What an option names among the values of a literal type."""
    known = get_args(kinds)
    if name not in known:
        raise UserError(f"{option} must be one of {', '.join(known)}, but got {name!r}")
    return name


def _open_data(
    root: StrPath, *, drop_bad_boxes: bool, drop_bad_images: bool = False, note: bool = True
) -> "CocoFolder":
    from smnas.data.coco import CocoFolder

    folder = CocoFolder(root, drop_bad_boxes=drop_bad_boxes, drop_bad_images=drop_bad_images)
    if note:
        _note(folder.notes)
    return folder


def _note(lines: Iterable[str]) -> None:
    for line in lines:
        _log.info("%s", line)


def _check_images(folder: "CocoFolder", on_progress: OnProgress) -> None:
    """Decode the validation images once: training reads its own in its first minutes, and these at its end."""
    phase = "checking validation images"
    before = folder.notes
    folder.split("val").require_decodable(lambda done, total: on_progress(phase, done, total, ""))
    _note(line for line in folder.notes if line not in before)
