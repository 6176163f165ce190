"""What ``smnas profile`` does with tables that are there: merge, compare, check, export, draw. No device is needed."""

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from rich.console import Console

from profiler.errors import UserError
from smnas.cli.terminal.console import Output, show_facts, show_table

if TYPE_CHECKING:
    from profiler.devices import GpuSheet
    from profiler.table.diff import Comparison, Difference
    from profiler.table.latency_table import LatencyTable, Row

__all__ = [
    "Task",
    "diff",
    "export",
    "measured_on",
    "merge",
    "report",
    "show_measured",
    "table_of",
    "task_of",
    "validate",
]

Task = Literal["merge", "diff", "validate", "export", "report"]
_TASKS: dict[Task, tuple[str, ...]] = {
    "merge": (),
    "diff": ("across",),
    "validate": (),
    "export": ("superseded",),
    "report": (),
}
"""Every task with the options that are for it alone."""
_SHARED: dict[Task, tuple[str, ...]] = {"report": ("arch", "classes")}
"""Options that a task shares with measuring."""
_EVERYWHERE = ("table", "as_json", "quiet")


def task_of(context: typer.Context) -> Task | None:
    """The task that the user's options ask for; ``None`` for measuring.

    Raises:
        UserError: several tasks, or an option that has no meaning for the one asked for.
    """
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    given = [name for name in flags if name is not None and _is_given(context, name)]
    tasks = [task for task in _TASKS if task in given]
    if len(tasks) > 1:
        raise UserError(f"one thing is done with a table at a time, but got {', '.join(f'--{task}' for task in tasks)}")
    for task, its_own in _TASKS.items():
        if task not in tasks and (alone := next((name for name in its_own if name in given), None)):
            raise UserError(f"{flags[alone]} is for --{task}, but got it without")
    if not tasks:
        return None
    (task,) = tasks
    others = [flags[name] for name in given if name not in (task, *_TASKS[task], *_SHARED.get(task, ()), *_EVERYWHERE)]
    if others:
        raise UserError(f"--{task} works on tables alone and measures nothing: it excludes {', '.join(others)}")
    return task


def measured_on(sheet: "GpuSheet", file: Path, architectures: Sequence[str], classes: int) -> dict[str, Any]:
    """What a table holds of a GPU that is elsewhere, by backend and precision; no targets where it holds nothing.

    Of every architecture it gives the sum of its blocks, ``None`` where one is missing or failed.
    """
    from profiler.devices import matching_names
    from profiler.prediction.estimate import ESTIMATE_BACKEND
    from profiler.prediction.predict import FailedPartError, MissingPartsError, sum_parts
    from profiler.table.latency_table import LatencyTable
    from smnas.latency.profiling import given
    from smnas.latency.workloads import detector_workloads
    from smnas.report.latency_data import read_view

    targets = []
    with LatencyTable(file, create=False) as table:
        measured = [target for target in table.targets() if target.backend != ESTIMATE_BACKEND]
        names = matching_names(sheet, [target.device for target in measured])
        for target in (target for target in measured if target.device in names):
            facts, rows = read_view(table, target).facts, table.current(target)
            sums: dict[str, float | None] = {}
            for architecture in given(architectures):
                try:
                    keys = [part.key for part in detector_workloads(architecture, classes, target.batch)]
                    sums[str(architecture)] = sum_parts(keys, rows).ms
                except (MissingPartsError, FailedPartError):
                    sums[str(architecture)] = None
            counts = {"blocks": facts.blocks, "wholes": facts.wholes, "failed": len(facts.failed)}
            targets.append({**asdict(target), **counts, "disturbed": facts.disturbed, "sums_ms": sums})
    return {"gpu": sheet.name, "table": file, "classes": classes, "targets": targets}


def show_measured(console: Console, document: dict[str, Any]) -> None:
    """The table of a GPU that is elsewhere, for people."""
    console.print(f"{document['table']}: measured on {document['gpu']}, read here", soft_wrap=True, markup=False)
    names = ["device", "backend", "backend_version", "precision", "batch", "blocks", "wholes", "failed", "disturbed"]
    rows = [[target[name] for name in names] for target in document["targets"]]
    show_table(console, [name.replace("_", " ") for name in names], rows)
    for target in document["targets"]:
        for architecture, ms in target["sums_ms"].items():
            found = "not all blocks measured" if ms is None else f"{ms:.4g} ms, sum of blocks"
            console.print(
                f"{target['backend']} {target['precision']}: {architecture}: {found}", soft_wrap=True, markup=False
            )


def report(output: Output, table: Path, out: Path, architectures: Sequence[str], classes: int) -> None:
    """Write a table's page."""
    from smnas.report.latency_page import write_latency_page

    view = write_latency_page(table, out, architectures=architectures, classes=classes)
    document = {"table": table, "report": out, "target": vars(view.target), "blocks": view.facts.blocks}
    facts = [("report", out), ("device", view.target.device), ("blocks", view.facts.blocks)]
    output.result(document, lambda console: show_facts(console, facts))


def table_of(task: Task, table: Path | None) -> Path:
    """The table that a task is about.

    Raises:
        UserError: there is none.
    """
    if table is None:
        raise UserError(f"--{task} needs --table FILE, the table that it is about")
    return table


def merge(output: Output, file: Path, others: Sequence[Path]) -> None:
    """Add the rows of other tables to one, which is made where it is missing."""
    from profiler.table import merge as table_merge
    from profiler.table.latency_table import LatencyTable

    for other in others:  # what can be refused is refused before a new table is made
        LatencyTable(other, read_only=True).close()
    with output.working("merging"), LatencyTable(file) as table:
        merged = table_merge.merge(table, others)
        rows, current = sum(1 for _ in table.rows(superseded=True)), table.count()
    document = {
        "table": file,
        "merged": [{"table": part.path, "rows": part.rows, "added": part.added} for part in merged],
        "rows": rows,
        "current": current,
    }
    facts: list[tuple[str, object]] = [
        ("table", file),
        *(("merged", f"{part.path}: {part.added:,} of {part.rows:,} rows are new") for part in merged),
        ("rows", f"{rows:,}, of them {current:,} current"),
    ]
    output.result(document, lambda console: show_facts(console, facts))


def diff(output: Output, file: Path, other: Path, across: Sequence[str]) -> None:
    """Compare the current rows of another table with those of one."""
    from profiler.table import diff as table_diff
    from profiler.table.latency_table import LatencyTable

    with LatencyTable(file, read_only=True) as first, LatencyTable(other, read_only=True) as second:
        found = table_diff.diff(first, second, across=across)
        apart = _fields_apart(first, second)
    document = {
        "table": file,
        "other": other,
        "across": list(across),
        "counts": found.counts,
        "median_ratio": found.median_ratio,
        "workloads": [_compared(comparison) for comparison in found.comparisons],
    }
    output.result(document, lambda console: _show_diff(console, file, other, found))
    if apart and not any(one.first is not None and one.second is not None for one in found.comparisons):
        hint = " ".join(f"--across {name}" for name in apart)
        output.note(f"no workload of one target is in both tables, which differ in {', '.join(apart)}: try {hint}")


def validate(output: Output, file: Path) -> None:
    """Say what is wrong with a table, a line each.

    Raises:
        UserError: something is.
    """
    from profiler.table import validate as table_validate

    with output.working("checking"):
        found = table_validate.validate(file)
    document = {
        "table": file,
        "version": found.version,
        "rows": found.rows,
        "current": found.current,
        "problems": found.problems,
    }

    def show(console: Console) -> None:
        rows = f"{found.rows:,}, of them {found.current:,} current"
        show_facts(console, [("table", file), ("version", found.version), ("rows", rows)])
        for problem in found.problems:
            console.print(problem, soft_wrap=True, markup=False)
        if not found.problems:
            console.print("nothing is wrong with it")

    output.result(document, show)
    if found.problems:
        count = len(found.problems)
        raise UserError(f"a latency table must be whole, but {file} has {count} problem{'s' if count > 1 else ''}")


def export(output: Output, file: Path, to: Path, *, superseded: bool) -> None:
    """Write the rows of a table as CSV, JSON or Parquet."""
    from profiler.table import export as table_export
    from profiler.table.latency_table import LatencyTable

    with output.working("writing"), LatencyTable(file, read_only=True) as table:
        count = table_export.export_rows(table, to, superseded=superseded)
    document = {"table": file, "file": to, "rows": count, "superseded": superseded}
    output.result(document, lambda console: show_facts(console, [("file", to), ("rows", count)]))


def _is_given(context: typer.Context, name: str) -> bool:
    # By name: the enumeration is click's own or typer's copy of it, depending on the version.
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def _fields_apart(first: "LatencyTable", second: "LatencyTable") -> list[str]:
    """Fields of the target of which the two tables share no value."""
    from profiler.table.latency_table import Target

    one, other = first.targets(), second.targets()
    names = [field.name for field in fields(Target)] if one and other else []
    return [
        name
        for name in names
        if not {getattr(target, name) for target in one} & {getattr(target, name) for target in other}
    ]


def _compared(comparison: "Comparison") -> dict[str, Any]:
    return {
        "key": comparison.key,
        "name": comparison.name,
        "verdict": comparison.verdict,
        "ratio": comparison.ratio,
        "first": _facts(comparison.first),
        "second": _facts(comparison.second),
    }


def _facts(row: "Row | None") -> dict[str, Any] | None:
    if row is None:
        return None
    return {
        "target": row.target,
        "status": row.status,
        "reason": row.reason,
        "median_ms": row.median_ms,
        "low_ms": row.low_ms,
        "high_ms": row.high_ms,
        "created_at": row.created_at,
    }


def _show_diff(console: Console, file: Path, other: Path, found: "Difference") -> None:
    """The counts, and a row for each workload that became faster or slower, the largest change first."""
    changed = [one for one in found.comparisons if one.verdict in ("faster", "slower")]
    changed.sort(key=lambda one: -abs(math.log(one.ratio)) if one.ratio else -math.inf)
    rows = [[one.verdict, one.ratio, _interval(one.first), _interval(one.second), one.name] for one in changed]
    if rows:
        show_table(console, ["verdict", "ratio", "first, ms", "second, ms", "workload"], rows)
    ratio = None if found.median_ratio is None else f"{found.median_ratio:.3f} second by first"
    counts: list[tuple[str, object]] = [(name, count) for name, count in found.counts.items()]
    show_facts(console, [("first", file), ("second", other), *counts, ("median ratio", ratio)])


def _interval(row: "Row | None") -> str | None:
    if row is None or row.median_ms is None or row.low_ms is None or row.high_ms is None:
        return None
    return f"{row.median_ms:.4g} [{row.low_ms:.4g}, {row.high_ms:.4g}]"
