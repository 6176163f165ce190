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
from smnas.cli.terminal.options import (
    DropBadBoxesOption,
    DropBadImagesOption,
    MeasuringOptions,
    PresetOption,
    PretrainedOption,
    TestDataOption,
    examples,
    require_cores,
)
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


def _one_count(text: object) -> int:
    """Parse ``--threads``; several are for several searches."""
    given = str(text)
    if "," in given:
        raise UserError(f"a search has one number of threads, so each needs a search of its own, but got {given!r}")
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"--threads must be an integer of at least 1, but got {given!r}")
    return int(given)


@dataclass(frozen=True, kw_only=True)
class SearchOptions(MeasuringOptions):
    """Options of ``smnas search``."""

    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR")]
    data: Annotated[Path | None, typer.Option("--data", metavar="DIR")] = None
    test_data: TestDataOption = None
    latency_ms: Annotated[float | None, typer.Option("--latency-ms")] = None
    latency_confidence: Annotated[float, typer.Option(min=0.01, max=0.999)] = 0.9
    accept_version: Annotated[str | None, typer.Option(metavar="VERSION")] = None
    preset: PresetOption = "nano"
    threads: Annotated[int, typer.Option(metavar="N", parser=_one_count, callback=require_cores)] = 1
    max_parameters: Annotated[int | None, typer.Option(min=1)] = None
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How candidates are proposed: halving, sm-nas, surrogate, nsga2, regularized-evolution, random or "
            "mae-det. Default: halving; sm-nas with --prior; mae-det with --scorer entropy; nsga2 with shared-ap.",
        ),
    ] = None
    scorer: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How candidates are scored: ap (by training), shared-ap (with weights that all share, trained once), "
            "fine-tuned-ap (trained from them), or without training by entropy, entropy-16 or entropy-deepmad.",
        ),
    ] = "ap"
    prior: Annotated[str | None, typer.Option(metavar="NAME")] = None
    trials: Annotated[str, typer.Option(metavar="N1,N2")] = "10,10"
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Training recipe: nano, small, sm-nas or a .toml file. Default: as the preset."
        ),
    ] = None
    epochs: Annotated[int | None, typer.Option(min=1)] = None
    final_epochs: Annotated[str | None, typer.Option(metavar="N|auto")] = None
    final_seeds: Annotated[int, typer.Option(min=1)] = 1
    final: Annotated[str | None, typer.Option(metavar="NAME")] = None
    supernet_epochs: Annotated[int | None, typer.Option(min=1)] = None
    top: Annotated[int, typer.Option(min=1)] = 3
    workers: Annotated[int | None, typer.Option(min=1)] = None
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS")] = None
    generation: Annotated[int | None, typer.Option(min=1)] = None
    storage: Annotated[str | None, typer.Option(metavar="URL")] = None
    warm_start: Annotated[list[Path] | None, typer.Option(metavar="RUN")] = None
    pretrained: PretrainedOption = None
    drop_bad_boxes: DropBadBoxesOption = False
    drop_bad_images: DropBadImagesOption = False


def search(options: SearchOptions) -> None:
    """Find the detector to deploy on a device, for your images, within a latency limit.

    Stage 1 searches combinations of modules, stage 2 evolves depth and width inside the best ones. The latency of every
    candidate comes from the device's latency table, its AP from training from scratch; a baseline is trained for as
    long. The best are trained again, ranked, exported to ONNX and measured again as exported files. With --precision
    int8 (fp16 on a GPU) latencies and files are of that precision; training and its AP stay fp32, and the file's own AP
    is listed beside it. With --scorer entropy candidates are scored without training, and only the best are trained.
    With --pretrained every candidate and the baseline start from those weights, remapped to their shapes.
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
                "ap_split": ranking.ap_split,
                "ranking": ranking.rows,
                "recommendation": ranking.recommendation,
                "picks": ranking.picks,
                "bands": ranking.bands,
                "correlations": ranking.correlations,
                "changes": ranking.changes,
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
