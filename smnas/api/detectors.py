"""One detector: build, train, evaluate, export, detect."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.errors import UserError
from smnas.api.arguments import (
    OnProgress,
    StrPath,
    architecture_of,
    check_images,
    epochs_of,
    held_out_of,
    note_lines,
    one_of,
    open_data,
    pretrained_of,
    quiet,
    recipe_of,
)
from smnas.durations import seconds_of
from smnas.space.architecture import Architecture

if TYPE_CHECKING:
    from smnas.deploy.export import ExportReport
    from smnas.evaluation.coco_eval import CocoMetrics
    from smnas.inference.detector import Detector
    from smnas.inference.results import DetectReport, FrameResult, ImageResult
    from smnas.inference.runtime_base import Model
    from smnas.models.detector import Detector as Network
    from smnas.scoring.base import ScoringProgress
    from smnas.training.curve import EpochLog
    from smnas.training.recipe import Recipe

__all__ = ["DEFAULT_SCORE", "Evaluation", "TrainingRun", "build", "detect", "evaluate", "export", "train"]

DEFAULT_SCORE = 0.3
"""Lowest score of a detection that counts, where none is given."""

_EVALUATED_AT_ONCE = 8
_IMAGES_COMPARED = 16
_PHASES = {"train": "epoch", "evaluate": "evaluating, %"}

_log = logging.getLogger(__name__)


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

    return build_detector(architecture_of(architecture), classes, **options)


@dataclass(frozen=True)
class TrainingRun:
    """A finished training run.

    Attributes:
        folder: With its checkpoint, curve and metrics.
        architecture: Of the detector.
        checkpoint: The trained weights.
        epochs: Epochs trained.
        seconds: Training time, over all processes that took part.
        metrics: The 12 COCO numbers of the validation images, 0 to 1; NaN where undefined. With held-out images they
            are of those, and ``validation_ap`` is beside them.
        first: Whether this process is the one that reports, of those that ``torchrun`` started.
        stop_reason: Why it ended, with epochs ``auto``.
    """

    folder: Path
    architecture: Architecture
    checkpoint: Path | None
    epochs: int
    seconds: float
    metrics: Mapping[str, float]
    first: bool = True
    stop_reason: str | None = None

    @property
    def ap(self) -> float:
        """AP over IoU thresholds .50 to .95, 0 to 1."""
        return self.metrics["ap"]

    @property
    def ap_split(self) -> str:
        """The images that the metrics are of: ``test`` or ``validation``."""
        return "test" if "validation_ap" in self.metrics else "validation"

    def detector(self, **options: Any) -> "Detector":
        """The trained detector, ready to use; options as of :class:`~smnas.inference.detector.Detector`."""
        from smnas.inference.detector import Detector

        return Detector(self.folder, **options)


def train(
    arch: "Architecture | str",
    data: StrPath,
    out: StrPath,
    *,
    test_data: StrPath | None = None,
    epochs: int | str | None = None,
    time_limit: str | float | None = None,
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
    on_progress: OnProgress = quiet,
) -> TrainingRun:
    """Train one architecture, or resume its training run; evaluate it on the validation images.

    Args:
        arch: What to train.
        data: COCO-format folder.
        out: Where checkpoint, curve and metrics go.
        test_data: Held-out images, which the choice of an epoch does not see: the metrics are of them. A folder with a
            test or val split; by default the ``test`` split of ``data``, if it has one.
        epochs: Passes over the data; by default the recipe's. ``auto`` trains until AP on the validation images no
            longer rises, and then lets the learning rate decay: at most 300 epochs, or N with ``auto:N``.
        time_limit: With epochs ``auto``: begin to decay so that training ends in time, as in ``30m``, or seconds.
        recipe: Name, .toml file or value.
        batch_size: Images per step; by default the recipe's.
        evaluate_every: Epochs between evaluations on the way; 0: only at the end.
        tensorboard: Write TensorBoard logs to ``out/tensorboard``.
        pretrained: What the backbone starts from, remapped to its shape: ``imagenet`` (torchvision's weights), a
            ``state_dict`` file of a ResNet, ResNeXt or MobileNetV2, or a checkpoint or its folder, which also gives
            neck and heads where shapes agree.
        norm: ``gn-ws`` (the default): GroupNorm and weight standardization everywhere; ``gn``: the same without
            standardized weights in the backbone; ``bn``: BatchNorm in the backbone. By default with ``pretrained``,
            that of the weights.
        stem: ``deep`` (the default): two 3x3 convolutions; ``imagenet`` (the default with ``pretrained``): a 7x7 one
            and pooling.
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
    from smnas.scoring.trained_ap import TrainedAP
    from smnas.space.convolutions import StemKind
    from smnas.training.checkpoint import CHECKPOINT_FILE, load_checkpoint
    from smnas.training.curve import best_epoch
    from smnas.training.distributed import ranks_from_environment
    from smnas.training.tensorboard import TensorBoard

    architecture, out = architecture_of(arch), Path(out)
    most, automatic = epochs_of("--epochs", epochs)
    settings = recipe_of(recipe).with_(epochs=most, batch_size=batch_size, evaluate_every=evaluate_every)
    automatic = automatic or settings.schedule == "auto"
    if time_limit is not None and not automatic:
        raise UserError(f"--time-limit goes with --epochs auto, but got --epochs {settings.epochs}")
    limit_s = None if time_limit is None else seconds_of(time_limit)
    weights = pretrained_of(pretrained)
    start = None if weights is None else weights.seed(architecture.backbone)
    norm_kind = one_of("--norm", NormKind, norm or (weights.norm if weights else "gn-ws"))
    stem_kind = one_of("--stem", StemKind, stem or (start.stem or "imagenet" if start else "deep"))
    with ExitStack() as stack:
        ranks, device = stack.enter_context(ranks_from_environment())
        folder = open_data(
            data,
            drop_bad_boxes=drop_bad_boxes,
            drop_bad_images=drop_bad_images,
            note=ranks.first,
            test_data=held_out_of(data, test_data),
        )
        images = len(folder.split("train"))
        if batch_size is not None and batch_size > images:
            raise UserError(
                f"--batch-size must be at most the number of training images, {images}, but got {batch_size}"
            )
        size = architecture.input_width, architecture.input_height
        small = box_notes(folder.split("train"), [size], settings.augmentation.min_side_px)
        before = out / CHECKPOINT_FILE
        finished = list(load_checkpoint(before).history) if before.exists() else []
        if ranks.first and not finished:
            check_images(folder, on_progress)
        if ranks.first:
            note_lines(small)
            together = f" in {ranks.count} processes" if ranks.count > 1 else ""
            origin = "" if start is None else f", from {start.name}"
            upto = f"{'at most ' if automatic else ''}{settings.epochs} epochs"
            _log.info("training on %s%s: %d images, %s%s", device, together, images, upto, origin)
        events = (
            stack.enter_context(TensorBoard(out / "tensorboard", finished)) if tensorboard and ranks.first else None
        )

        def end_epoch(log: "EpochLog") -> None:
            if events is not None:
                events.add(log)
            if on_epoch is not None and ranks.first:
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
            automatic=automatic,
            norm=norm_kind,
            stem=stem_kind,
            pretrained=weights,
            ranks=ranks,
            on_epoch=end_epoch,
        )
        found = scorer.score_final(
            architecture,
            seed=seed,
            epochs=settings.epochs,
            out_dir=out,
            time_limit_s=limit_s,
            on_progress=step if ranks.first else None,
        )
        best = best_epoch(load_checkpoint(before).history) if ranks.first else None
        if ranks.first and found.stop_reason:
            note_lines([found.stop_reason])
        if best is not None and best.epoch < found.epochs:
            text = "the weights are those of epoch %d of %d, whose AP on the validation images is highest"
            _log.info(text, best.epoch, found.epochs)
    return TrainingRun(
        out,
        architecture,
        found.checkpoint,
        found.epochs,
        found.seconds,
        found.metrics,
        first=ranks.first,
        stop_reason=found.stop_reason,
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
    runtime: str | None = None,
    device: str | None = None,
    drop_bad_boxes: bool = False,
    drop_bad_images: bool = False,
    on_progress: OnProgress = quiet,
) -> Evaluation:
    """Evaluate a model on the validation images by pycocotools; an exported file is run as it is.

    Args:
        model: Checkpoint, ONNX file or engine; or the folder of a search or of a training run.
        data: COCO-format folder.
        batch: Images per call; by default 8, or the nearest number of whole batches of an exported file.
        runtime: Runs an ONNX file: ``onnxruntime`` or ``openvino``; by default that of the search, or the first. A
            .tflite file runs in LiteRT.
        device: Of OpenVINO: ``cpu`` (the default), ``gpu`` or ``npu``.
        drop_bad_boxes: Leave out boxes without a size or outside their image.
        drop_bad_images: Leave out images that are missing, damaged or of another size than annotated.
        on_progress: Called while evaluating.

    Raises:
        UserError: the model or the data can not be read.
    """
    from smnas.deploy.accuracy import evaluate_model

    network = _opened(model, runtime, device)
    split = open_data(data, drop_bad_boxes=drop_bad_boxes, drop_bad_images=drop_bad_images).split("val")
    own = network.metadata.batch
    at_once = batch or own * max(1, _EVALUATED_AT_ONCE // own)
    metrics = evaluate_model(network, split, at_once, lambda done, total: on_progress("evaluating", done, total, ""))
    return Evaluation(network.path, len(split), metrics)


def export(
    model: StrPath,
    out: StrPath,
    *,
    data: StrPath | None = None,
    format: str = "onnx",  # noqa: A002  the option's name
    runtime: str | None = None,
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
        out: The file to write: .onnx, .tflite for LiteRT, or .engine for an engine.
        data: COCO-format folder to compare, calibrate and measure AP on; by default generated shapes.
        format: ``onnx``, ``litert``, ``tensorrt-rtx`` or ``tensorrt``.
        runtime: Checks an ONNX file: ``onnxruntime`` (the default) or ``openvino``; the file is the same, and either
            runs it.
        precision: Number format of the network: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        batch: Images of one run of the file.
        compute_capability: GPUs that a ``tensorrt-rtx`` engine must run on, each such as ``8.9``.
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
    folder = None if data is None else open_data(data, drop_bad_boxes=drop_bad_boxes, drop_bad_images=drop_bad_images)
    dataset = None if folder is None else folder.split("val")
    calibrated = folder.split("train") if folder is not None and precision == "int8" else None
    return export_detector(
        file,
        Path(out),
        file_format=format.replace("_", "-"),
        runtime=runtime,
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
    runtime: str | None = None,
    device: str | None = None,
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
        camera: A camera by its number, until Ctrl-C or ``frames``.
        score: Lowest score of a detection that counts; by default 0.3, and 0 with ``coco``.
        batch: Images of one call of the network; by default the file's own, of a checkpoint 1.
        workers: Threads that decode, resize and draw while the network runs; 0: in turn.
        quick_decode: Decode large JPEG files at a fraction of their size; boxes move a little.
        runtime: Runs an ONNX file: ``onnxruntime`` or ``openvino``; by default that of the search, or the first.
        device: Of OpenVINO: ``cpu`` (the default), ``gpu`` or ``npu``.
        cuda_graph: Run a checkpoint or an engine as CUDA graphs; not run on a GPU yet.
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
    from smnas.inference.pipeline import DetectOptions

    inputs = find_inputs(images, camera=camera)
    if inputs.remark is not None:
        _log.info("%s", inputs.remark)
    if coco is not None and (inputs.videos or camera is not None):
        raise UserError("COCO results are of images, but got a video or camera beside --coco")
    if coco is not None:
        require_place(Path(coco))
    lowest = score if score is not None else (DEFAULT_SCORE if coco is None else 0.0)
    network = _opened(model, runtime, device, cuda_graph=cuda_graph)
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
        note_lines(filter(None, [listed.write(found.images, Path(coco))]))
    return found


def _opened(model: StrPath, runtime: str | None, device: str | None, *, cuda_graph: bool = False) -> "Model":
    from smnas.inference.model_file import model_file, usual_runtime
    from smnas.inference.runtime import load_model
    from smnas.training.device import training_device

    runtime = runtime or usual_runtime(Path(model))
    if device is not None and runtime != "openvino":
        raise UserError(f"a device is chosen for --runtime openvino, but got {device!r}")
    place = device or ("cpu" if runtime else training_device())
    return load_model(model_file(Path(model)), runtime=runtime, device=place, cuda_graph=cuda_graph)
