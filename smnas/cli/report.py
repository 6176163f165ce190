"""``smnas report``: a run folder as one self-contained HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from smnas.cli.terminal.console import Output, show_lines
from smnas.cli.terminal.options import JsonOption, QuietOption, examples

__all__ = ["EXAMPLES", "report"]

EXAMPLES = examples("smnas report quickstart", "smnas-report my-run --out my-run.html --quiet")


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, as `smnas search --out` wrote it.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to write it. Default: RUN/report.html.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Data for sample detections. Default: where it was in the search."),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option("--table", metavar="FILE", help="Latency table of the search. Default: RUN/latency.db."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a run folder as one HTML page.

    Ranking, Pareto front, training curves and failures, in a single file that needs no network. A search that is still
    running or was interrupted gives a page of its results so far.
    """
    with Output.open(as_json=as_json, quiet=quiet) as output:
        from smnas import api

        page = api.report(run, out, data=data, table=table)
        output.result({"report": page}, lambda console: show_lines(console, str(page)))
