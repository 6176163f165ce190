"""``smnas table``: merge, compare, check, export and draw latency tables, without a device and without measuring."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from profiler.errors import UserError
from smnas.cli.terminal.console import Output, show_facts, show_lines, show_table
from smnas.cli.terminal.options import ClassesOption, JsonOption, QuietOption, examples

if TYPE_CHECKING:
    from profiler.table.diff import Comparison, Difference
    from profiler.table.latency_table import LatencyTable, Row

__all__ = ["EXAMPLES", "TASKS", "as_table_command", "diff", "export", "merge", "report", "table", "validate"]

EXAMPLES = examples(
    "smnas table merge all.db here.db there.db",
    "smnas-table diff before.db after.db --across backend_version",
    "smnas table validate latency.db",
    "smnas table export latency.db --out rows.parquet",
    "smnas table report latency.db --out latency.html",
)
TableArgument = Annotated[Path, typer.Argument(metavar="TABLE", help="Latency table (SQLite).")]


def table() -> None:
    """Merge, compare, check, export and draw latency tables.

    A latency table is the SQLite file that smnas profile fills. These commands need no device and measure nothing.
    """


def merge(
    table: TableArgument,
    others: Annotated[list[Path], typer.Argument(metavar="OTHER...", help="Tables whose rows are added.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Add the rows of other tables to one, which is created if it is missing.

    Duplicate rows are skipped, so tables may be merged in any order and any number of times.
    """
    from profiler.table import merge as table_merge
    from profiler.table.latency_table import LatencyTable

    with Output.open(as_json=as_json, quiet=quiet) as output:
        for other in others:  # unreadable tables are refused before a new one is made
            LatencyTable(other, read_only=True).close()
        with output.working("merging"), LatencyTable(table) as rows:
            merged = table_merge.merge(rows, others)
            count, current = sum(1 for _ in rows.rows(superseded=True)), rows.count()
        document = {
            "table": table,
            "merged": [{"table": part.path, "rows": part.rows, "added": part.added} for part in merged],
            "rows": count,
            "current": current,
        }
        facts: list[tuple[str, object]] = [
            ("table", table),
            *(("merged", f"{part.path}: {part.added:,} of {part.rows:,} rows are new") for part in merged),
            ("rows", f"{count:,}, of them {current:,} current"),
        ]
        output.result(document, lambda console: show_facts(console, facts))


def diff(
    table: TableArgument,
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="Table to compare with it.")],
    across: Annotated[
        list[str] | None,
        typer.Option("--across", metavar="FIELD", help="Pair rows that differ in this field, such as device."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare the current rows of two tables.

    Every workload is faster, slower, equal or in one table only; two latencies inside each other's intervals are equal.
    """
    from profiler.table import diff as table_diff
    from profiler.table.latency_table import LatencyTable

    with Output.open(as_json=as_json, quiet=quiet) as output:
        with LatencyTable(table, read_only=True) as first, LatencyTable(other, read_only=True) as second:
            found = table_diff.diff(first, second, across=across or ())
            apart = _fields_apart(first, second)
        document = {
            "table": table,
            "other": other,
            "across": across or [],
            "counts": found.counts,
            "median_ratio": found.median_ratio,
            "workloads": [_compared(comparison) for comparison in found.comparisons],
        }
        output.result(document, lambda console: _show_diff(console, table, other, found))
        if apart and not any(one.first is not None and one.second is not None for one in found.comparisons):
            hint = " ".join(f"--across {name}" for name in apart)
            output.note(f"no workload of one target is in both tables, which differ in {', '.join(apart)}: try {hint}")


def validate(table: TableArgument, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Check a table and list its problems, one a line.

    Schema, triggers, intervals, sample counts and versions are checked, and rows whose rounds disagree are named; the
    exit code is 2 if there is anything.
    """
    from profiler.table import validate as table_validate

    with Output.open(as_json=as_json, quiet=quiet) as output:
        with output.working("checking"):
            found = table_validate.validate(table)
        names = ("version", "rows", "current", "problems", "unsteady")
        document = {"table": table, **{name: getattr(found, name) for name in names}}
        rows = f"{found.rows:,}, of them {found.current:,} current"

        def show(console: Console) -> None:
            show_facts(console, [("table", table), ("version", found.version), ("rows", rows)])
            show_lines(console, *([*found.problems, *found.unsteady] or ["nothing is wrong with it"]))

        output.result(document, show)
        if found.problems:
            count = len(found.problems)
            raise UserError(f"a latency table must be whole, but {table} has {count} problem{'s' if count > 1 else ''}")
        if count := len(found.unsteady):
            raise UserError(
                f"the rounds of a row must agree, but those of {count} in {table} do not: smnas profile --refresh "
                "unsteady measures them again"
            )


def export(
    table: TableArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The .csv, .json or .parquet to write.")],
    superseded: Annotated[bool, typer.Option("--superseded", help="Superseded rows too.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the rows of a table as CSV, JSON or Parquet.

    Every row comes with its target, interval, conditions and raw facts, for a spreadsheet or a data frame.
    """
    from profiler.table import export as table_export
    from profiler.table.latency_table import LatencyTable

    with Output.open(as_json=as_json, quiet=quiet) as output:
        with output.working("writing"), LatencyTable(table, read_only=True) as rows:
            count = table_export.export_rows(rows, out, superseded=superseded)
        document = {"table": table, "file": out, "rows": count, "superseded": superseded}
        output.result(document, lambda console: show_facts(console, [("file", out), ("rows", count)]))


def report(
    table: TableArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The HTML page to write.")],
    arch: Annotated[
        list[str] | None, typer.Option("--arch", metavar="ARCH", help="Show the blocks of this one; may be repeated.")
    ] = None,
    classes: ClassesOption = 80,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw a table as one HTML page.

    Latencies against work, the slowest blocks, how predictions compare with measurements where an audit was made, and
    with --arch the blocks of a detector.
    """
    with Output.open(as_json=as_json, quiet=quiet) as output:
        from smnas.report.latency_page import write_latency_page

        view = write_latency_page(table, out, architectures=arch or (), classes=classes)
        document = {"table": table, "report": out, "target": vars(view.target), "blocks": view.facts.blocks}
        facts = [("report", out), ("device", view.target.device), ("blocks", view.facts.blocks)]
        output.result(document, lambda console: show_facts(console, facts))


TASKS: dict[str, Callable[..., None]] = {
    "merge": merge,
    "diff": diff,
    "validate": validate,
    "export": export,
    "report": report,
}
"""The subcommands by name."""


def as_table_command(arguments: Sequence[str]) -> list[str] | None:
    """Arguments of ``smnas table`` for the former spelling ``smnas profile --table A --merge B``; None for others."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    task = next((task for task in TASKS if f"--{task}" in words), None)
    if task is None:
        return None
    file: list[str] = []
    rest: list[str] = []
    values = iter(words)
    for word in values:
        if word == "--table":
            file = [value for value in [next(values, None)] if value is not None]
        elif word == f"--{task}":
            rest += ["--out"] if task in ("export", "report") else []
        else:
            rest.append(word)
    return [task, *file, *rest]


def _fields_apart(first: "LatencyTable", second: "LatencyTable") -> list[str]:
    """Fields of the target in which the two tables share no value."""
    from profiler.table.latency_table import TARGET_COLUMNS

    one, other = first.targets(), second.targets()
    names = TARGET_COLUMNS if one and other else ()
    return [
        name
        for name in names
        if not {getattr(target, name) for target in one} & {getattr(target, name) for target in other}
    ]


def _compared(comparison: "Comparison") -> dict[str, Any]:
    shown = {name: getattr(comparison, name) for name in ("key", "name", "verdict", "ratio")}
    return {**shown, "first": _facts(comparison.first), "second": _facts(comparison.second)}


def _facts(row: "Row | None") -> dict[str, Any] | None:
    names = ("target", "status", "reason", "median_ms", "low_ms", "high_ms", "created_at")
    return None if row is None else {name: getattr(row, name) for name in names}


def _show_diff(console: Console, file: Path, other: Path, found: "Difference") -> None:
    """Print the counts and a row for each faster or slower workload, the largest change first."""
    changed = [one for one in found.comparisons if one.verdict in ("faster", "slower")]
    changed.sort(key=lambda one: -abs(math.log(one.ratio)) if one.ratio else -math.inf)
    rows = [[one.verdict, one.ratio, _interval(one.first), _interval(one.second), one.name] for one in changed]
    if rows:
        show_table(console, ["verdict", "ratio", "first, ms", "second, ms", "workload"], rows)
    ratio = None if found.median_ratio is None else f"{found.median_ratio:.3f} second by first"
    counts: list[tuple[str, object]] = [(name, count) for name, count in found.counts.items()]
    show_facts(console, [("first", file), ("second", other), *counts, ("median ratio", ratio)])


def _interval(row: "Row | None") -> str | None:
    if row is None or row.interval is None:
        return None
    low, median, high = row.interval
    return f"{median:.4g} [{low:.4g}, {high:.4g}]"
