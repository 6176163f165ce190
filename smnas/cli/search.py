"""``smnas search``: from a data set and a device to a ranked, exported detector."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from profiler.errors import UserError
from smnas.cli.terminal.console import Output
from smnas.cli.terminal.exit_codes import NothingRecommendedError
from smnas.cli.terminal.options import DropBadBoxesOption, DropBadImagesOption, MeasuringOptions, PresetOption, examples
from smnas.cli.terminal.search_display import SearchDisplay, show_ranking
from smnas.search.study.run_folder import RunFolder

if TYPE_CHECKING:
    from smnas.api import SearchRun

__all__ = ["EXAMPLES", "SearchOptions", "search"]

EXAMPLES = examples(
    "smnas search --preset nano --out quickstart",
    "smnas search --data my-images --device cpu --latency-ms 5 --preset nano --trials 20,20 --out my-run",
    "smnas-search --data my-images --device local --preset small --final-seeds 2 --top 3 --out my-run",
    "smnas search --data my-images --device cpu --latency-ms 5 --scorer entropy --trials 20,0 --out my-zero-shot",
    "smnas search --data my-images --device v100 --table v100.db --latency-ms 3 --preset small --out for-v100",
    "smnas-search --data my-images --preset small --strategy halving --trials 100,100 --time-limit 8h --out my-run",
)


@dataclass(frozen=True, kw_only=True)
class SearchOptions(MeasuringOptions):
    """Options of ``smnas search``."""

    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Run folder; an interrupted run resumes.")]
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="COCO-format folder. Default: coloured shapes, made in OUT/data."),
    ] = None
    latency_ms: Annotated[
        float | None, typer.Option("--latency-ms", min=0.0, help="Latency limit: recommend nothing slower than this.")
    ] = None
    latency_confidence: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=0.999,
            help="Probability that a predicted latency's interval holds the measured one; for a device elsewhere the "
            "limit bounds its upper end.",
        ),
    ] = 0.9
    accept_version: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="For a device elsewhere: take the table's rows of this backend version."),
    ] = None
    preset: PresetOption = "nano"
    max_parameters: Annotated[
        int | None,
        typer.Option(min=1, help="Size limit: train nothing larger but the baseline, recommend nothing larger."),
    ] = None
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How candidates are proposed: halving, sm-nas, surrogate, nsga2, regularized-evolution, random or "
            "mae-det. Default: halving; sm-nas with --prior; mae-det with --scorer entropy.",
        ),
    ] = None
    scorer: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How candidates are scored: ap (by training), or without training by entropy, entropy-16 or "
            "entropy-deepmad; then only the final phase trains.",
        ),
    ] = "ap"
    prior: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of every few proposals train the one with the highest entropy."),
    ] = None
    trials: Annotated[
        str, typer.Option(metavar="N1,N2", help="Candidates of stage 1 (structural) and stage 2 (modular).")
    ] = "10,10"
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Training recipe: nano, small, sm-nas or a .toml file. Default: as the preset."
        ),
    ] = None
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each candidate. Default: the recipe's.")] = None
    final_epochs: Annotated[
        int | None,
        typer.Option(min=0, help="Epochs of the final phase, 0 for none. Default: twice those of a candidate."),
    ] = None
    final_seeds: Annotated[int, typer.Option(min=1, help="Seeds of the final phase, for AP with a spread.")] = 1
    top: Annotated[int, typer.Option(min=1, help="Detectors of the front that are trained again and exported.")] = 3
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Training runs at once, each in a process. Default: one a GPU, or two on a CPU."),
    ] = None
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Train on this Ray cluster; --workers is then the most at once."),
    ] = None
    generation: Annotated[
        int | None,
        typer.Option(
            min=1, help="Candidates proposed at once, from the same results. Default: the workers, at least 2."
        ),
    ] = None
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Keep the study in this database (PostgreSQL) instead of OUT/study.db."),
    ] = None
    warm_start: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN", help="Begin with the training runs of this run folder; may be given several times."
        ),
    ] = None
    drop_bad_boxes: DropBadBoxesOption = False
    drop_bad_images: DropBadImagesOption = False


def search(options: SearchOptions) -> None:
    """Find the detector to deploy on a device, for your images, within a latency limit.

    Stage 1 searches combinations of modules, stage 2 evolves depth and width inside the best ones. The latency of every
    candidate comes from the device's latency table, its AP from training from scratch; a baseline is trained for as
    long. The best are trained again, ranked, exported to ONNX and measured again as exported files. With --precision
    int8 (fp16 on a GPU) latencies and files are of that precision; training and its AP stay fp32, and the file's own AP
    is listed beside it. With --scorer entropy candidates are scored without training, and only the best are trained.
    The run folder holds the ranking, the models and a report. Interrupted or even killed, the same command resumes,
    with any number of workers: it changes how soon results come, not which.

    A --device that is not in this machine needs a --table that smnas profile filled there. Latencies are then predicted
    from it, with the fraction that was measured beside each, and nothing is timed here.
    """
    with Output.open(as_json=options.as_json, quiet=options.quiet) as output:
        values = {**options.values(), "trials": _trial_counts(options.trials)}

        from smnas import api

        with SearchDisplay(output) as display:
            events = {name: getattr(display, name) for name in ("on_event", "on_training", "on_progress")}
            run = api.search(**values, **events)
        ranking, page = run.ranking, RunFolder(run.folder).report
        output.result(
            {
                "run": run.folder,
                "report": page,
                "ranking": ranking.rows,
                "recommendation": ranking.recommendation,
                "picks": ranking.picks,
                "bands": ranking.bands,
                "correlations": ranking.correlations,
                "notes": ranking.notes,
            },
            lambda console: _show(console, run),
        )
        if ranking.recommendation is None:
            why = "nothing is recommended" if ranking.rows else "nothing has an AP"
            raise NothingRecommendedError(f"a search ends with a detector, but {why}: {page} says why")


def _trial_counts(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,5}),(\d{1,6})", text)
    if match is None:
        raise UserError(f"--trials must be two numbers as in 20,20, the first above 0, but got {text!r}")
    return int(match[1]), int(match[2])


def _show(console: Console, run: "SearchRun") -> None:
    show_ranking(console, run.ranking)
    files = RunFolder(run.folder)
    for file in (files.csv, files.report, files.models):
        console.print(f"{file.name:<12} {file}", soft_wrap=True, markup=False)
