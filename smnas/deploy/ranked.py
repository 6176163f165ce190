"""The ranked detectors as files: exported, evaluated, timed and ranked again by the results.

Every result is in ``ranking.json`` at once, so a killed deployment resumes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc  # a binomial tail; scipy.stats takes a second to import

from profiler.devices import Device, cpu_device
from profiler.errors import BackendUnavailableError, UserError, one_line
from profiler.graphs.export import ExportError
from smnas.data.coco import DetectionDataset
from smnas.deploy.export import IMAGES_CALIBRATED, ExportMismatchError, canvases, export_detector
from smnas.deploy.latency import DEFAULT_ROUNDS, measure_files
from smnas.evaluation.predict import evaluate
from smnas.inference.runtime import RUNTIMES, load_model
from smnas.search.ranking.ranking import Ranking, RankingRow, complete_ranking, read_ranking
from smnas.search.study.run_folder import RunFolder
from smnas.search.study.settings import SearchSettings, read_settings

__all__ = ["DeployEvent", "DeployReport", "deploy_ranking"]

_IMAGES_COMPARED = 16
_AP_TOLERANCE = 1e-3
_UNLIKELY = 0.01  # chance of that many files outside their intervals below which a note says so
_FAR_OFF = 2.0


@dataclass(frozen=True)
class DeployEvent:
    """Current work, for a progress bar.

    Attributes:
        step: ``export``, ``evaluate`` or ``time``.
        architecture: Its detector; empty while timing, which alternates between all files.
        done: Finished parts of this step, out of ``total``.
    """

    step: Literal["export", "evaluate", "time"]
    architecture: str
    done: int
    total: int


@dataclass(frozen=True)
class DeployReport:
    """A finished deployment.

    Attributes:
        ranking: Ranked again, with the measurements.
        exported: Architectures exported by this call.
        skipped: Those exported by an earlier call.
        failed: Failed exports with the reason; also in the ranking's notes.
    """

    ranking: Ranking
    exported: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()


@dataclass
class _Progress:
    exported: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def deploy_ranking(
    folder: Path,
    dataset: DetectionDataset,
    *,
    calibration: DetectionDataset | None = None,
    top: int | None = None,
    device: Device | None = None,
    rounds: int = DEFAULT_ROUNDS,
    on_event: Callable[[DeployEvent], None] | None = None,
) -> DeployReport:
    """Export the best of a run folder's ranking, those that it names, and its baseline, and measure the files.

    The files have the precision of the search's latencies, and are run in its backend where that is one of
    ``RUNTIMES``, else in ONNX Runtime. AP is measured per file on the validation images; latencies are interleaved over
    all files for comparison. Then the ranking is made again, as measured latencies count for more than predicted ones;
    a newly named detector without a file gets one too. A failed export is noted in the ranking and does not stop the
    others.

    Args:
        folder: A run folder with a ranking.
        dataset: The validation images.
        calibration: The training images, for a search in ``int8``.
        top: Number of the best to export; by default that of the search's settings.
        device: For latency; this machine's CPU by default. Files for a device that is elsewhere are timed on it alone.
        rounds: Measurements per file.
        on_event: Called before every part of a step.

    Raises:
        RunFolderError: no run folder, no ranking, or one of another version.
    """
    settings = read_settings(folder)
    if tuple(dataset.classes) != settings.data.classes:
        raise UserError(
            f"the images must have the search's classes, {', '.join(settings.data.classes)}, "
            f"but got {', '.join(dataset.classes)}"
        )
    ranking = read_ranking(folder)
    count = settings.top if top is None else top
    chosen = [row.architecture for row in ranking.rows if row.rank <= count or row.role == "baseline"]
    chosen += [name for name in _named(ranking) if name not in chosen]
    notify = on_event or (lambda event: None)
    progress = _Progress()
    while chosen:
        for index, architecture in enumerate(chosen):
            notify(DeployEvent("export", architecture, index, len(chosen)))
            _deploy_row(folder, settings, architecture, dataset, calibration, progress, notify)
        ranking = _time(folder, settings, dataset, device, rounds, notify)
        done = {*progress.exported, *progress.skipped, *progress.failed}
        chosen = [name for name in _named(ranking) if name not in done]
    return DeployReport(ranking, tuple(progress.exported), tuple(progress.skipped), tuple(progress.failed.items()))


def _named(ranking: Ranking) -> list[str]:
    """The recommended detector and the picks."""
    recommended = () if ranking.recommendation is None else (ranking.recommendation,)
    return list(dict.fromkeys(one.architecture for one in (*recommended, *ranking.picks)))


def _deploy_row(
    folder: Path,
    settings: SearchSettings,
    architecture: str,
    dataset: DetectionDataset,
    calibration: DetectionDataset | None,
    progress: _Progress,
    notify: Callable[[DeployEvent], None],
) -> None:
    row = next(row for row in read_ranking(folder).rows if row.architecture == architecture)
    if row.model is not None and row.exported_ap is not None and (folder / row.model).is_file():
        progress.skipped.append(architecture)
        return
    try:
        if row.checkpoint is None:
            raise UserError("the ranking names no checkpoint")
        runtime = _runtime(settings)
        relative = RunFolder("").model(architecture).with_suffix(RUNTIMES[runtime])
        int8 = settings.precision == "int8"
        export_detector(
            folder / row.checkpoint,
            folder / relative,
            precision=settings.precision,
            verify_images=dataset.spread(_IMAGES_COMPARED),
            file_format="litert" if runtime == "litert" else "onnx",
            runtime=runtime,
            calibration_images=calibration.spread(IMAGES_CALIBRATED, settings.seed) if calibration and int8 else (),
        )
        model = load_model(folder / relative, runtime=runtime)
        metrics = evaluate(
            model,
            dataset,
            *model.input_size,
            batch_size=1,
            on_progress=lambda done, total: notify(DeployEvent("evaluate", architecture, done, total)),
        )
    except (UserError, ExportError, ExportMismatchError) as error:
        reason = one_line(error)
        progress.failed[architecture] = reason
        complete_ranking(folder, settings, {}, [f"{architecture} could not be exported: {reason}"])
        return
    notes = _ap_notes(row, metrics.ap)
    values = {"model": str(relative), "exported_ap": metrics.ap, "exported_ap50": metrics.ap50}
    complete_ranking(folder, settings, {architecture: values}, notes)
    progress.exported.append(architecture)


def _ap_notes(row: RankingRow, exported_ap: float) -> list[str]:
    # The exported checkpoint is that of the best seed.
    trained = max(row.ap_per_seed)
    if abs(trained - exported_ap) <= _AP_TOLERANCE:
        return []
    return [
        f"{row.architecture}: the exported file has AP {exported_ap:.4f}, its checkpoint had {trained:.4f} when it was "
        "trained."
    ]


def _time(
    folder: Path,
    settings: SearchSettings,
    dataset: DetectionDataset,
    device: Device | None,
    rounds: int,
    notify: Callable[[DeployEvent], None],
) -> Ranking:
    ranking = read_ranking(folder)
    rows = [row for row in ranking.rows if row.model is not None and (folder / row.model).is_file()]
    away = (
        settings.elsewhere and settings.device != (device or cpu_device()).name
    )  # its times would not be the device's
    known = not settings.elsewhere and all(row.measured_latency_ms is not None for row in rows)
    if not rows or away or known:
        return ranking
    image = dataset.image(0)
    files: dict[str, tuple[Path, NDArray[np.uint8]]] = {}
    for row in rows:
        path = folder / str(row.model)
        files[row.architecture] = (path, canvases([image], *load_model(path, runtime=_runtime(settings)).input_size))
    try:
        found = measure_files(
            files,
            runtime=_runtime(settings),
            device=device,
            threads=settings.threads,
            rounds=rounds,
            seed=settings.seed,
            on_progress=lambda done, total: notify(DeployEvent("time", "", done, total)),
        )
    except BackendUnavailableError as error:
        return complete_ranking(folder, settings, {}, [f"The exported files were not timed: {error}"])
    return complete_ranking(
        folder,
        settings,
        {
            architecture: {
                "measured_latency_ms": latency.median_ms,
                "measured_latency_low_ms": latency.low_ms,
                "measured_latency_high_ms": latency.high_ms,
            }
            for architecture, latency in found.items()
        },
        _latency_notes(settings, rows, {name: latency.median_ms for name, latency in found.items()}),
    )


def _runtime(settings: SearchSettings) -> str:
    """What runs the files: the search's own backend, if it runs files."""
    return settings.backend if settings.backend in RUNTIMES else "onnxruntime"


def _latency_notes(settings: SearchSettings, rows: Sequence[RankingRow], measured: Mapping[str, float]) -> list[str]:
    """What the reader must know of predicted beside measured latencies, in ms by architecture."""
    if settings.backend not in RUNTIMES:
        return [
            f"Latencies were predicted for {settings.backend} and measured on the exported files in "
            f"{_runtime(settings)}: the two do not compare."
        ]
    outside, ratios = 0, [1.0]
    for row in rows:
        low, high, ms = row.predicted_latency_low_ms, row.predicted_latency_high_ms, measured[row.architecture]
        if low is not None and high is not None:
            outside += not low <= ms <= high
            ratios.append(ms / row.predicted_latency_ms)
    by_chance = float(bdtrc(outside - 1, len(rows), 1 - settings.latency_confidence)) if outside else 1.0
    farthest = max(ratios, key=lambda ratio: abs(math.log(ratio)))
    if by_chance >= _UNLIKELY and 1 / _FAR_OFF < farthest < _FAR_OFF:
        return []
    return [
        f"Of {len(rows)} exported files {outside} took longer or shorter than the interval of their prediction allows, "
        f"one {farthest:.2g} times its prediction: probably this machine was busier at one time than at the other. "
        "`smnas doctor --measure` says how noisy it is and what to do."
    ]
