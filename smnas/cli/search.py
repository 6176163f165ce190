"""``smnas search``: from a data set and a device to a ranked, exported detector."""

import math
import platform
import re
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from profiler.errors import UserError
from smnas import __version__
from smnas.cli.data_folder import check_images, open_data
from smnas.cli.terminal.console import Output
from smnas.cli.terminal.options import (
    BackendOption,
    DeviceOption,
    DropBadBoxesOption,
    JsonOption,
    PrecisionOption,
    PresetOption,
    QuietOption,
    SeedOption,
    TableOption,
    ThreadsOption,
    examples,
)
from smnas.cli.terminal.progress import Steps
from smnas.cli.terminal.search_display import SearchDisplay, show_ranking
from smnas.durations import seconds_of
from smnas.search.study.run_folder import RunFolder
from smnas.training.device import cpu_cores, training_devices

if TYPE_CHECKING:
    from collections.abc import Callable

    from profiler.backends.base import Backend
    from profiler.table.latency_table import LatencyTable
    from smnas.data.coco import CocoFolder
    from smnas.scoring.by_name import AnyScorer, ScorerOnDevices
    from smnas.scoring.workers.processes import ScorerPool
    from smnas.search.method import Method
    from smnas.search.ranking.ranking import Ranking
    from smnas.search.study.settings import SearchSettings
    from smnas.space.architecture import Architecture
    from smnas.space.preset import Space
    from smnas.training.recipe import Recipe

__all__ = ["EXAMPLES", "NothingTrainedError", "search"]

_PRECISIONS = ("fp32", "fp16", "int8")  # of the ONNX files that a search ends with
_FINISHING = {"export": "exporting", "evaluate": "evaluating files", "time": "timing files"}
_CALIBRATION_WHOLES = 3
_CLUSTER_WORKERS = 8  # proposed at once, where nobody said how many training runs the cluster has room for
_CALIBRATION_STREAM = 1 << 32  # apart from the trials' own random numbers, which are seeded by [seed, trial number]

EXAMPLES = examples(
    "smnas search --preset nano --out quickstart",
    "smnas search --data my-images --device cpu --latency-ms 5 --preset nano --trials 20,20 --out my-run",
    "smnas-search --data my-images --device local --preset small --final-seeds 2 --top 3 --out my-run",
    "smnas search --data my-images --device cpu --latency-ms 5 --scorer entropy --trials 20,0 --out my-zero-shot",
    "smnas-search --data my-images --preset small --strategy halving --trials 100,100 --time-limit 8h --out my-run",
)


class NothingTrainedError(RuntimeError):
    """Every training failed, or nothing was trained."""


def search(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Run folder; an interrupted run resumes.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="COCO-format folder. Default: coloured shapes, made in OUT/data."),
    ] = None,
    gpu: DeviceOption = "local",
    latency_ms: Annotated[
        float | None, typer.Option("--latency-ms", min=0.0, help="Budget: recommend nothing slower than this.")
    ] = None,
    preset: PresetOption = "nano",
    max_parameters: Annotated[int | None, typer.Option(min=1, help="Train nothing larger than this.")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How candidates are proposed: halving, sm-nas, surrogate, nsga2, regularized-evolution, random or "
            "mae-det. Default: halving; sm-nas with --prior; mae-det with --scorer entropy.",
        ),
    ] = None,
    scorer: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How candidates are scored: ap (by training), or without training by entropy, entropy-16 or "
            "entropy-deepmad; then only the final phase trains.",
        ),
    ] = "ap",
    prior: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of every few proposals train the one with the highest entropy."),
    ] = None,
    trials: Annotated[
        str, typer.Option(metavar="N1,N2", help="Candidates of stage 1 (structural) and stage 2 (modular).")
    ] = "10,10",
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Training recipe: nano, small, sm-nas or a .toml file. Default: as the preset."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each candidate. Default: the recipe's.")] = None,
    final_epochs: Annotated[
        int | None, typer.Option(min=0, help="Epochs of the last training of the best; 0: none. Default: twice.")
    ] = None,
    final_seeds: Annotated[int, typer.Option(min=1, help="Seeds of the last training, for AP with a spread.")] = 1,
    top: Annotated[int, typer.Option(min=1, help="How many of the best are trained again and exported.")] = 3,
    table: TableOption = None,
    backend: BackendOption = "onnxruntime",
    precision: PrecisionOption = "fp32",
    threads: ThreadsOption = 1,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Training runs at once, each in a process. Default: one a GPU, or two on a CPU."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Train on this Ray cluster; --workers is then the most at once."),
    ] = None,
    generation: Annotated[
        int | None,
        typer.Option(
            min=1, help="Candidates proposed at once, from the same results. Default: the workers, at least 2."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--time-limit",
            "--budget",
            metavar="TIME",
            help="As 45m or 8h: stop proposing in time for the last training runs. Resumes if rerun.",
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Keep the study in this database (PostgreSQL) instead of OUT/study.db."),
    ] = None,
    warm_start: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN", help="Begin with the training runs of this run folder; may be given several times."
        ),
    ] = None,
    drop_bad_boxes: DropBadBoxesOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Find the detector to deploy on a device, for your images, within a latency budget.

    Stage 1 looks for the best combinations of modules, stage 2 evolves depth and width inside the best ones. Latency of
    every candidate comes from the device's latency table, AP from training it from scratch; a baseline is trained
    under the same budget. The best are trained again, ranked, exported to ONNX and measured again as exported files.
    With --precision int8 (fp16 on a GPU) latencies and files are of that precision; training and its AP stay fp32, and
    the file's own AP stands beside it.
    With --scorer entropy candidates are scored without training, and only the best are trained at all.
    The run folder holds the ranking, the models and a report. Interrupted, even killed, the same command resumes, also
    with other workers: their number does not change what is found, only how soon.
    """
    with Output.open(as_json=as_json, quiet=quiet) as output:
        counts = _trial_counts(trials)
        until_s = None if budget is None else time.monotonic() + seconds_of(budget)
        if latency_ms is not None and not 0 < latency_ms < math.inf:
            raise UserError(f"--latency-ms must be a number above 0, but got {latency_ms:g}")

        from profiler.backends import get_backend
        from profiler.backends.base import check_precision
        from profiler.devices import resolve_device
        from profiler.table.latency_table import LatencyTable
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
        from smnas.training.recipe import load_recipe

        files = RunFolder(out)
        # What can be refused is refused before anything is written.
        before = read_settings(out) if files.settings.exists() else None
        space = space_of_run(preset, before)
        method = choose_method(strategy, scorer, prior, final_epochs)
        runner = get_backend(backend, resolve_device(gpu), threads=threads)
        check_precision(runner, precision)
        if precision not in _PRECISIONS:
            raise UserError(f"--precision of a search must be one of {', '.join(_PRECISIONS)}, but got {precision!r}")
        training = load_recipe(recipe or space.recipe)
        if storage is not None:
            storage_url(storage)
        workers = workers or (_CLUSTER_WORKERS if ray is not None else _workers())
        if generation is None:
            generation = max(2, workers) if before is None else before.generation
        training_threads = max(1, cpu_cores() // workers) if before is None else before.training_threads
        if ray is not None:
            from smnas.scoring.workers.ray import import_ray

            import_ray()
        if table is not None:
            LatencyTable(table).close()
        root = data if data is not None else _generated(files.data, output)
        folder = open_data(root, output, drop_bad_boxes=drop_bad_boxes)
        if before is None:
            check_images(folder, output)
        search_epochs = epochs or training.epochs
        training = method.recipe(training, len(folder.split("train")))
        settings = SearchSettings(
            smnas=__version__,
            **space_settings(preset, space),
            data=DataFacts(
                root=str(folder.root.resolve()),
                classes=folder.classes,
                train_images=len(folder.split("train")),
                val_images=len(folder.split("val")),
                drop_bad_boxes=drop_bad_boxes,
            ),
            device=runner.device.name,
            backend=runner.name,
            precision=precision,
            threads=threads,
            recipe=training.model_dump(mode="json"),
            epochs=search_epochs,
            seed=seed,
            latency_ms=latency_ms,
            max_parameters=max_parameters,
            storage=storage,
            study=study_name(out, storage) if before is None else before.study,
            warm_start=tuple(str(run.resolve()) for run in warm_start or ()),
            **method.settings(*counts),
            versions=_versions(runner),
            generation=generation,
            training_threads=training_threads,
            top=top,
            final_epochs=2 * search_epochs if final_epochs is None else final_epochs,
            final_seeds=final_seeds,
        )
        if before is None:
            warm_candidates(settings, space)
        if storage is not None:
            open_storage(out, storage).engine.dispose()
        if prepare_run_folder(out, settings):
            output.note(f"resuming {out}")
        with LatencyTable(table or files.table) as rows:
            _search(out, settings, method, space, folder, training, runner, rows, workers, ray, until_s, output)
        ranking, page = _finish(out, folder, runner, table, output)
        output.result(
            {
                "run": out,
                "report": page,
                "ranking": ranking.rows,
                "recommendation": ranking.recommendation,
                "bands": ranking.bands,
                "correlations": ranking.correlations,
                "notes": ranking.notes,
            },
            lambda console: _show(console, out, ranking),
        )
        if ranking.recommendation is None:
            raise NothingTrainedError(f"a search ends with a detector, but nothing has an AP: {page} says why")


def _workers() -> int:
    """One a GPU. On a CPU two, since two runs of one thread each are faster than one after the other with two."""
    devices = training_devices()
    return min(2, cpu_cores()) if devices == ("cpu",) else len(devices)


def _trial_counts(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,5}),(\d{1,6})", text)
    if match is None:
        raise UserError(f"--trials must be two numbers as in 20,20, the first above 0, but got {text!r}")
    return int(match[1]), int(match[2])


def _generated(root: Path, output: Output) -> Path:
    from smnas.data.shapes import generate_shapes

    with Steps(output, "generating images") as steps:
        return generate_shapes(root, on_progress=steps.at)


def _versions(backend: "Backend") -> dict[str, str]:
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, backend.name: backend.version}


def _search(
    out: Path,
    settings: "SearchSettings",
    method: "Method",
    space: "Space",
    folder: "CocoFolder",
    recipe: "Recipe",
    backend: "Backend",
    table: "LatencyTable",
    workers: int,
    ray: str | None,
    until_s: float | None,
    output: Output,
) -> None:
    from smnas.latency.detector_latency import DetectorLatency
    from smnas.latency.workloads import detector_workloads
    from smnas.scoring.base import AP
    from smnas.scoring.by_name import ScorerOnDevices, quick_score
    from smnas.scoring.workers.processes import InProcess
    from smnas.search.context import SearchContext
    from smnas.search.run import run_search
    from smnas.search.study.candidate import Complexity

    def complexity(architecture: "Architecture") -> Complexity:
        workloads = detector_workloads(architecture, len(folder.classes))
        return Complexity(sum(w.parameters for w in workloads), sum(w.flops for w in workloads))

    devices = training_devices()
    output.note(
        f"searching {settings.preset} ({space.structural_size():,} structures), runs at once: {workers}, each on "
        f"{settings.training_threads} CPU threads{'' if devices == ('cpu',) else ' and ' + ' or '.join(devices)}, "
        f"latency on {backend.device.name} in {backend.name} {backend.version}"
    )
    latency = DetectorLatency(
        len(folder.classes), backend, table, precision=settings.precision, batch=settings.batch, seed=settings.seed
    )
    measured = _calibration_set(space, settings.seed)
    output.note(f"measuring {len(measured)} whole detectors and their blocks, to calibrate predictions")
    calibration = latency.calibrate(measured)
    for architecture, reason in calibration.failed:
        output.note(f"left out of the calibration: {architecture}: {reason}")

    def pool(scorer: "AnyScorer") -> "AbstractContextManager[ScorerPool]":
        make_on = partial(
            ScorerOnDevices, scorer, folder.root.resolve(), recipe, drop_bad_boxes=settings.data.drop_bad_boxes
        )
        return _scorers(make_on, devices, workers, settings, ray)

    quick, alone = quick_score(settings.scorer) is not None, settings.metric == AP
    with ExitStack() as stack:
        display = stack.enter_context(SearchDisplay(output))
        trainers = stack.enter_context(pool(settings.scorer if alone else "ap"))
        if quick:
            scorers: ScorerPool = InProcess(ScorerOnDevices(settings.scorer, folder.root, recipe, devices)(0))
        else:
            scorers = trainers if alone else stack.enter_context(pool(settings.scorer))
        run_search(
            SearchContext(
                out,
                settings,
                space,
                latency,
                time_limit_s=None if until_s is None else until_s - time.monotonic(),  # calibrating took its part
                on_progress=lambda text, _done: output.note(text),
            ),
            scorers=scorers,
            trainers=trainers,
            strategy=method.strategy,
            complexity=complexity,
            on_event=display.on_event,
            on_training=display.on_training,
        )


def _scorers(
    make_on: "Callable[[tuple[str, ...]], ScorerOnDevices]",
    devices: tuple[str, ...],
    workers: int,
    settings: "SearchSettings",
    ray: str | None,
) -> "AbstractContextManager[ScorerPool]":
    """A cluster, worker processes, or for a single training at a time this process."""
    from smnas.scoring.workers.processes import InProcess, Workers

    if ray is not None:
        from smnas.scoring.workers.ray import RayWorkers

        return RayWorkers(make_on, ray, settings.training_threads, workers)
    if workers > 1:
        return Workers(make_on(devices), workers, settings.training_threads)
    import torch

    torch.set_num_threads(settings.training_threads)
    return nullcontext(InProcess(make_on(devices)(0)))


def _calibration_set(space: "Space", seed: int) -> "list[Architecture]":
    """The baseline and random structures, the same for one seed."""
    import numpy as np

    structures = space.structures
    chosen = np.random.default_rng([seed, _CALIBRATION_STREAM]).permutation(len(structures))[:_CALIBRATION_WHOLES]
    return [space.baseline_architecture, *(structures[index] for index in chosen.tolist())]


def _finish(
    out: Path, folder: "CocoFolder", backend: "Backend", table: Path | None, output: Output
) -> "tuple[Ranking, Path]":
    """Export the best, measure the files, rank again by what was measured, write the report."""
    from smnas.deploy.ranked import DeployEvent, deploy_ranking
    from smnas.report.page import write_report

    with ExitStack() as stack:
        bars: dict[str, Steps] = {}

        def on_event(event: DeployEvent) -> None:
            if event.step not in bars:
                bars[event.step] = stack.enter_context(Steps(output, _FINISHING[event.step]))
            bars[event.step].at(event.done, event.total, event.architecture)

        report = deploy_ranking(
            out, folder.split("val"), calibration=folder.split("train"), device=backend.device, on_event=on_event
        )
    for architecture, reason in report.failed:
        output.note(f"could not be exported: {architecture}: {reason}")
    return report.ranking, write_report(out, data_root=folder.root, table=table)


def _show(console: Console, out: Path, ranking: "Ranking") -> None:
    show_ranking(console, ranking)
    files = RunFolder(out)
    for file in (files.csv, files.report, files.models):
        console.print(f"{file.name:<12} {file}", soft_wrap=True, markup=False)
