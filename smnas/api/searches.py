"""Searches: what is checked before, wired together for, and done after the loop of :mod:`smnas.search.run`."""

import logging
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from profiler.atomic import require_room
from profiler.errors import UserError
from profiler.timing import DEFAULT_ROUNDS
from smnas.api.arguments import (
    OnProgress,
    StrPath,
    backend_of,
    check_images,
    epochs_of,
    held_out_of,
    note_lines,
    number_of,
    open_data,
    pretrained_of,
    quiet,
    recipe_of,
)
from smnas.api.runs import SearchRun
from smnas.durations import seconds_of
from smnas.search.study.run_folder import RunFolder
from smnas.space.architecture import Architecture

if TYPE_CHECKING:
    from profiler.backends.base import Backend
    from profiler.devices import Device
    from profiler.table.latency_table import LatencyTable, Target
    from profiler.timing.measurement import TimingSettings
    from smnas.data.coco import CocoFolder
    from smnas.latency.detector_latency import DetectorLatency
    from smnas.latency.elsewhere import DeviceElsewhere
    from smnas.latency.prediction import LatencyPredictor
    from smnas.models.layers import NormKind
    from smnas.scoring.base import Scorer, ScoringProgress
    from smnas.scoring.by_name import AnyScorer
    from smnas.scoring.workers.processes import ScorerPool
    from smnas.search.context import SearchContext
    from smnas.search.method import Method
    from smnas.search.progress import SearchEvent
    from smnas.search.strategies.base import StrategyKind
    from smnas.search.strategies.by_name import AnyStrategy
    from smnas.search.study.settings import SearchSettings
    from smnas.space.preset import Space
    from smnas.training.pretrained import Pretrained
    from smnas.training.recipe import Recipe

__all__ = ["search"]

_FILE_PRECISIONS = ("fp32", "fp16", "int8")  # of the ONNX files that a search ends with
_CALIBRATION_S = 90.0  # that measuring the detectors to calibrate on may take
_PROBED = 7  # random structures, beside the baseline, that a table too thin is asked to hold
_CLUSTER_WORKERS = 8  # training runs at once on a cluster, by default
_FINISHING = {"export": "exporting", "evaluate": "evaluating files", "time": "timing files"}

_log = logging.getLogger(__name__)


def search(
    out: StrPath,
    data: StrPath | None = None,
    *,
    test_data: StrPath | None = None,
    device: str = "local",
    latency_ms: float | None = None,
    latency_confidence: float = 0.9,
    preset: str = "nano",
    max_parameters: int | None = None,
    strategy: "AnyStrategy | None" = None,
    scorer: "AnyScorer" = "ap",
    prior: str | None = None,
    trials: tuple[int, int] = (10, 10),
    recipe: "str | Path | Recipe | None" = None,
    epochs: int | None = None,
    final_epochs: int | str | None = None,
    final_seeds: int = 1,
    final: str | None = None,
    supernet_epochs: int | None = None,
    top: int = 3,
    table: StrPath | None = None,
    accept_version: str | None = None,
    backend: str = "onnxruntime",
    precision: str = "fp32",
    threads: int = 1,
    workers: int | None = None,
    ray: str | None = None,
    generation: int | None = None,
    time_limit: str | float | None = None,
    storage: str | None = None,
    warm_start: StrPath | Sequence[StrPath] = (),
    pretrained: StrPath | None = None,
    drop_bad_boxes: bool = False,
    drop_bad_images: bool = False,
    seed: int = 0,
    calibration: int = 7,
    timing: "TimingSettings | None" = None,
    rounds: int = DEFAULT_ROUNDS,
    deploy: bool = True,
    on_event: "Callable[[SearchEvent], None] | None" = None,
    on_training: "Callable[[int, ScoringProgress], None] | None" = None,
    on_progress: OnProgress = quiet,
) -> SearchRun:
    """Find the detector to deploy on a device, for a data set, within a latency limit; or resume that search.

    Args:
        out: Run folder; an interrupted run resumes.
        data: COCO-format folder; by default coloured shapes, generated in ``out/data``.
        test_data: Held-out images, which neither the search nor the choice of an epoch sees: the AP of the final phase
            is of them. A folder with a test or val split; by default the ``test`` split of ``data``, if it has one.
        device: ``local``, ``cpu``, or a GPU such as ``v100``. With a ``table`` that was filled there, one that is not
            in this machine: a GPU, or part of a name that the table holds. Nothing is timed then: what the table holds
            of a detector is exact, other blocks are interpolated, and the whole detectors in it calibrate the sum.
        latency_ms: Latency limit: recommend nothing slower; for a device elsewhere, by the end of the interval.
        latency_confidence: Probability that the interval of a predicted latency is to hold the measured one. At 0.9, of
            the detectors that keep a limit by the end of their interval, one in 20 is to be above it.
        preset: Search space: ``nano``, ``small``, ``paper`` or a .toml file.
        max_parameters: Size limit: train and recommend nothing larger; the baseline is trained for comparison.
        strategy: How candidates are proposed: a name, or one's own (:mod:`smnas.search.strategies.base`).
        scorer: How candidates are scored: a name, or one's own (:mod:`smnas.scoring.base`).
        prior: Of every few proposals train the one with the highest value of this scorer.
        trials: Candidates of stage 1 (structural) and stage 2 (modular).
        recipe: Training recipe: name, .toml file or value; by default the space's.
        epochs: Epochs of each candidate; by default the recipe's.
        final_epochs: Epochs of the final phase, 0 for none; by default twice ``epochs``. ``auto`` or ``auto:N`` as of
            ``train``: each finalist trains until its AP no longer rises, and ``time_limit`` ends it in time.
        final_seeds: Seeds of the final phase, for AP with a spread.
        final: What the final phase trains from: ``scratch``, or ``fine-tune`` from the candidate's shared weights (the
            default with ``scorer`` shared-ap).
        supernet_epochs: Epochs of the shared weights, with ``scorer`` shared-ap; by default ten times ``epochs``.
        top: Candidates, spread over the front, that the final phase trains again and that are exported.
        table: Latency table; by default ``out/latency.db``.
        accept_version: Version of the backend whose rows are taken for a device elsewhere, instead of the one here.
        backend: What runs the network when latency is measured.
        precision: ``fp32``, ``fp16`` or ``int8``, of latencies and exported files.
        threads: CPU threads that a measured run may use.
        workers: Training runs at once, each in a process; by default one a GPU, or two on a CPU.
        ray: Address of a Ray cluster to train on; ``workers`` is then the most at once.
        generation: Candidates proposed at once; by default the workers, at least 2.
        time_limit: Stop proposing in time for the final phase: seconds, or as in ``8h``.
        storage: Database URL (PostgreSQL) of the study, instead of ``out/study.db``.
        warm_start: Run folders, one or several, whose training runs the search begins with.
        pretrained: What every candidate and the baseline start from, remapped to their shapes: ``imagenet``, a file or
            a folder, as of ``train``.
        drop_bad_boxes: Leave out boxes without a size or outside their image.
        drop_bad_images: Leave out images that are missing, damaged or of another size than annotated.
        seed: Random seed.
        calibration: Whole detectors, beside the baseline, that latency predictions are calibrated on: all within 90 s,
            or else the first few. Others in the table count too.
        timing: Accuracy and limits of one measurement.
        rounds: Rounds of each measurement, as of :func:`profile`.
        deploy: Export the best, and rank again by what the files do.
        on_event: Called after every trial and before every training run.
        on_training: Called with a trial's number, for progress inside its training run.
        on_progress: Called while something else is done.

    Raises:
        UserError: an argument, the data or the run folder breaks a rule.
        TableTooThinError: the table holds too little of a device elsewhere; says what to measure, and how.
    """
    from profiler.measuring.profile import measurement_target
    from profiler.table.latency_table import LatencyTable
    from smnas import __version__
    from smnas.data.coco import box_notes
    from smnas.deploy.request import Request
    from smnas.deploy.rerank import rerank
    from smnas.latency.elsewhere import DeviceElsewhere
    from smnas.report.page import write_report
    from smnas.search.context import SearchContext
    from smnas.search.drafts import check_size_limit
    from smnas.search.method import choose_method
    from smnas.search.ranking.ranking import read_ranking
    from smnas.search.ranking.writer import finished_ranking
    from smnas.search.study.settings import (
        data_facts,
        data_root,
        held_out_root,
        prepare_run_folder,
        read_settings,
        run_digest,
        settings_of,
        space_of_run,
        space_settings,
    )
    from smnas.search.study.storage import open_storage, storage_url, study_name
    from smnas.search.study.warm_start import warm_candidates
    from smnas.training.device import cpu_cores

    until = math.inf if time_limit is None else time.monotonic() + seconds_of(time_limit)
    latency_ms = None if latency_ms is None else number_of("--latency-ms", latency_ms, float)
    max_parameters = None if max_parameters is None else number_of("--max-parameters", max_parameters, int)
    latency_confidence = number_of("--latency-confidence", latency_confidence, float, below=1)
    rounds = number_of("--rounds", rounds, int)
    numbers = [n for n in trials if isinstance(n, int) and n >= 0]
    if len(numbers) != len(trials) or len(numbers) != 2 or numbers[0] == 0:
        raise UserError(f"trials must be two whole numbers as in (20, 20), the first above 0, but got {trials!r}")
    warm_start = (warm_start,) if isinstance(warm_start, str | Path) else warm_start
    files = RunFolder(out)
    # What can be refused is refused before anything is written.
    before = read_settings(files.path) if files.settings.exists() else None
    space = space_of_run(preset, before)
    most, automatic = epochs_of("--final-epochs", final_epochs)
    if automatic and not isinstance(scorer, str):
        raise UserError(f"--final-epochs auto goes with a scorer by name, but got {scorer!r}")
    method = choose_method(strategy, scorer, prior, most, final, supernet_epochs)
    runner = backend_of(device, backend, precision, threads) if _is_here(device, table) else None
    if runner is None and method.strategy.measures:
        raise UserError(f"--strategy {method.strategy.name} measures on the device itself, but got --device {device}")
    if runner is not None and accept_version is not None:
        raise UserError(f"--accept-version is for a device that is not in this machine, but got --device {device}")
    if precision not in _FILE_PRECISIONS:
        raise UserError(f"--precision of a search must be one of {', '.join(_FILE_PRECISIONS)}, but got {precision!r}")
    training = recipe_of(recipe or space.recipe)
    if training.schedule == "auto":
        raise UserError(
            "candidates are trained for equal epochs, with --final-epochs auto for the best, but got a recipe "
            f"with schedule auto, {training.name}"
        )
    start = pretrained_of(pretrained)
    if start is not None:
        _require_seeds(start, space, method, scorer)
    if storage is not None:
        storage_url(storage)
    workers = workers or (_CLUSTER_WORKERS if ray is not None else _workers())
    if ray is not None:
        from smnas.scoring.workers.ray import import_ray

        import_ray()
    if table is not None:
        LatencyTable(Path(table), read_only=runner is None).close()
    if data is None and before is not None:
        found = data_root(files.path, before.data)
        data = None if found == files.data and not found.is_dir() else found
    if before is None and max_parameters is not None:
        check_size_limit(space, max_parameters, _least_parameters)
    root = data or _generated(files.data, on_progress)
    if test_data is None and before is not None:
        held_out = held_out_root(files.path, before.data)
        test_data = root if held_out is not None and before.data.test == before.data.root else held_out
    else:
        test_data = held_out_of(root, test_data)
    folder = open_data(root, drop_bad_boxes=drop_bad_boxes, drop_bad_images=drop_bad_images, test_data=test_data)
    if before is None:
        check_images(folder, on_progress)
        note_lines(box_notes(folder.split("train"), space.inputs, training.augmentation.min_side_px))
    if runner is not None:
        target, predictor = measurement_target(runner, precision=precision), None
    else:
        described = partial(
            DeviceElsewhere,
            device=device,
            backend=backend,
            precision=precision,
            threads=threads,
            classes=len(folder.classes),
            accept_version=accept_version,
        )
        target, predictor = _elsewhere(cast("StrPath", table), described, space, seed, latency_confidence)
    train_images = len(folder.split("train"))
    training = method.recipe(training, train_images)
    settings = settings_of(
        smnas=__version__,
        **space_settings(preset, space),
        data=data_facts(folder, files.path),
        device=target.device,
        backend=target.backend,
        backend_version=target.backend_version if runner is None else None,
        precision=precision,
        threads=threads,
        recipe=training.model_dump(mode="json"),
        epochs=epochs or training.epochs,
        seed=seed,
        latency_ms=latency_ms,
        latency_confidence=latency_confidence,
        max_parameters=max_parameters,
        storage=storage,
        study=study_name(files.path, storage) if before is None else before.study,
        warm_start=tuple(str(Path(run).resolve()) for run in warm_start),
        warm_start_digests=tuple(run_digest(Path(run)) for run in warm_start),
        **method.settings(*trials),
        pretrained=None if start is None else start.source,
        pretrained_digest=None if start is None else start.digest,
        norm=_norm(start, here=runner is not None),
        versions=_versions(target),
        generation=generation or (max(2, workers) if before is None else before.generation),
        training_threads=max(1, cpu_cores() // workers) if before is None else before.training_threads,
        top=top,
        final_epochs=2 * (epochs or training.epochs) if most is None else most,
        final_schedule="auto" if automatic else "recipe",
        final_seeds=final_seeds,
        supernet_epochs=supernet_epochs,
    )
    if before is None:
        warm_candidates(settings, space)
    if storage is not None:
        open_storage(files.path, storage).engine.dispose()
    require_room(files.path, "a search's models")
    if prepare_run_folder(files.path, settings):
        _log.info("resuming %s", files.path)
    ended = finished_ranking(files.path)
    with ExitStack() as stack:
        _announce(settings, space, workers, target)
        profiler: DetectorLatency | None = None
        if runner is not None:
            rows = stack.enter_context(LatencyTable(Path(table or files.table)))
            profiler = _calibrated(settings, space, runner, rows, calibration, timing, rounds, on_progress)
        left_s = None if time_limit is None else until - time.monotonic()  # calibrating took its part
        context = SearchContext(
            files.path,
            settings,
            space,
            profiler.measure_and_predict if profiler is not None else cast("LatencyPredictor", predictor).predict,
            time_limit_s=left_s,
            on_progress=partial(_prepared, on_progress),
            profiler=profiler,
        )
        pool = partial(_pool, folder, training, settings, workers, ray, start)
        _loop(context, method.strategy, scorer, pool, on_event, on_training)
    if predictor is not None:
        rerank(files.path, settings, predictor, ended)
    if deploy:
        _deploy(files.path, folder, None if runner is None else runner.device, on_progress)
    if predictor is not None and read_ranking(files.path).rows:
        Request.of_run(files.path).write(files.path)
    write_report(files.path, images=folder, table=None if table is None else Path(table))
    return SearchRun(files.path)


def _least_parameters(architecture: Architecture) -> int:
    """Parameters of a detector of one class; of more it has more."""
    from smnas.models.build import build_detector

    return sum(p.numel() for p in build_detector(architecture, 1, device="meta").parameters())


def _require_seeds(start: "Pretrained", space: "Space", method: "Method", scorer: "AnyScorer") -> None:
    """Check that every detector of the search can start from the weights."""
    from smnas.space.families.resnet import ResNetSpec

    if not isinstance(scorer, str):
        raise UserError(f"--pretrained goes with a scorer by name, but got {scorer!r}")
    if hasattr(method.scorer, "finals"):
        raise UserError(f"--pretrained goes with candidates that train alone, but got --scorer {method.scorer.name}")
    if method.strategy.name == "mae-det":
        raise UserError("--pretrained goes with blocks of published networks, but mae-det proposes super-blocks")
    bounds = space.modular
    deepest = [
        replace(spec, code="1" * bounds.max_blocks)
        for spec in space.backbones
        if isinstance(spec, ResNetSpec) and spec.block in bounds.blocks
    ]
    for spec in dict.fromkeys((*space.backbones, *deepest)):
        start.seed(spec)


def _norm(start: "Pretrained | None", *, here: bool) -> "NormKind":
    """That of the weights; but tables of a device elsewhere have blocks with GroupNorm, as those of ``gn`` are."""
    if start is None:
        return "gn-ws"
    if start.norm == "bn" and not here:
        _log.info("detectors have GroupNorm, as the table's blocks, and not the weights' BatchNorm: they gain less")
        return "gn"
    return start.norm


def _announce(settings: "SearchSettings", space: "Space", workers: int, target: "Target") -> None:
    from smnas.training.device import training_devices

    devices = training_devices()
    _log.info(
        "searching %s (%s structures), runs at once: %d, each on %d CPU threads%s, latency on %s in %s %s",
        settings.preset,
        f"{space.structural_size():,}",
        workers,
        settings.training_threads,
        "" if devices == ("cpu",) else f" and {' or '.join(devices)}",
        target.device,
        target.backend,
        target.backend_version,
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
    from smnas.latency.workloads import detector_workloads, work_of
    from smnas.scoring.base import AP
    from smnas.scoring.by_name import get_scorer, quick_score
    from smnas.scoring.workers.processes import InProcess
    from smnas.search.method import FINALS
    from smnas.search.run import run_search
    from smnas.search.study.candidate import Complexity

    classes = len(context.settings.data.classes)

    def complexity(architecture: Architecture) -> Complexity:
        works = [work_of(block) for block in detector_workloads(architecture, classes)]
        return Complexity(sum(work.parameters for work in works), sum(work.flops for work in works))

    alone = context.settings.metric == AP
    final = getattr(get_scorer(scorer), "finals", FINALS)[context.settings.final]
    with ExitStack() as stack:
        trainers = stack.enter_context(pool(scorer if alone else final))
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
    pretrained: "Pretrained | None",
    scorer: "AnyScorer",
) -> "AbstractContextManager[ScorerPool]":
    """A cluster, worker processes, or for a single training run at a time this process."""
    from smnas.scoring.by_name import ScorerOnDevices
    from smnas.scoring.workers.processes import Workers
    from smnas.training.device import training_devices

    devices, threads = training_devices(), settings.training_threads
    make_on = partial(
        ScorerOnDevices,
        scorer,
        folder.root.resolve(),
        recipe,
        drop_bad_boxes=folder.drop_bad_boxes,
        drop_bad_images=folder.drop_bad_images,
        test=None if folder.test is None else folder.test.resolve(),
        automatic=settings.final_schedule == "auto",
        pretrained=pretrained,
        norm=settings.norm,
    )
    if ray is not None:
        from smnas.scoring.workers.ray import RayWorkers

        return RayWorkers(make_on, ray, threads, workers)
    if workers > 1:
        return Workers(make_on(devices), workers, threads)
    return _in_process(make_on(devices)(0), threads)


@contextmanager
def _in_process(scorer: "Scorer", threads: int) -> "Iterator[ScorerPool]":
    """Scores in this process, whose number of threads is afterwards as before."""
    import torch

    from smnas.scoring.workers.processes import InProcess

    outside = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield InProcess(scorer)
    finally:
        torch.set_num_threads(outside)


def _calibrated(
    settings: "SearchSettings",
    space: "Space",
    backend: "Backend",
    table: "LatencyTable",
    detectors: int,
    timing: "TimingSettings | None",
    rounds: int,
    on_progress: OnProgress,
) -> "DetectorLatency":
    """A predictor that is calibrated on the baseline, on structures that differ most, and on those in the table."""
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
        rounds=rounds,
        level=settings.latency_confidence,
        norm="bn" if settings.norm == "bn" else "gn-ws",
    )
    measured = calibration_set(space, settings.seed, detectors)
    _log.info("measuring %d whole detectors and their blocks, to calibrate predictions", len(measured))
    at = partial(on_progress, "detectors calibrated on")
    found = latency.measure_calibration(measured, budget_s=_CALIBRATION_S, on_progress=at)
    for architecture, reason in found.failed:
        _log.info("left out of the calibration: %s: %s", architecture, reason)
    if found.model.calibrated:
        text = "latencies are calibrated on %d whole detectors: intervals of predictions are about +-%.0f%%"
        _log.info(text, found.detectors, 100 * found.half_width)
    return latency


def _is_here(device: str, table: StrPath | None) -> bool:
    """Whether this machine has the device; where it has not, a table that exists may hold it."""
    from profiler.devices import resolve_device

    try:
        resolve_device(device)
    except UserError as error:
        if table is None:
            raise
        if not Path(table).is_file():
            raise UserError(f"{error}; --table {table} is no file") from None
        return False
    return True


def _elsewhere(
    table: StrPath, described: "Callable[[LatencyTable], DeviceElsewhere]", space: "Space", seed: int, level: float
) -> "tuple[Target, LatencyPredictor]":
    """The rows of a device that is not here, and a predictor that is calibrated on the whole detectors among them."""
    from profiler.table.latency_table import LatencyTable
    from smnas.latency.profiling import calibration_set

    probe = calibration_set(space, seed, _PROBED)
    with LatencyTable(Path(table), read_only=True) as rows:
        found = described(rows)
        target = found.target(probe)
        predictor, detectors = found.predictor(target, probe, level)
    text = "%s is not in this machine: latencies are predicted from %s, calibrated on %d whole detectors"
    _log.info(text, target.device, table, detectors)
    return target, predictor


def _deploy(run: Path, folder: "CocoFolder", device: "Device | None", on_progress: OnProgress) -> None:
    """Export the best, measure the files, rank again by what was measured."""
    from smnas.deploy.ranked import DeployEvent, deploy_ranking

    def on_event(event: DeployEvent) -> None:
        on_progress(_FINISHING[event.step], event.done, event.total, event.architecture)

    done = deploy_ranking(run, folder.reported, calibration=folder.split("train"), device=device, on_event=on_event)
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


def _versions(target: "Target") -> dict[str, str]:
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, target.backend: target.backend_version}
