"""``smnas profile``: measure a preset's or an architecture's blocks into a latency table, and work on such tables."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from profiler.errors import UserError
from smnas.cli import table as latency_tables
from smnas.cli.terminal.audit_display import show_audit
from smnas.cli.terminal.console import Output, show_facts, show_table
from smnas.cli.terminal.options import (
    BackendOption,
    BatchOption,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    QuietOption,
    SeedOption,
    TableOption,
    ThreadsOption,
    examples,
)
from smnas.cli.terminal.progress import Steps, seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from profiler.measuring.profile import Progress

__all__ = ["EXAMPLES", "profile"]

_ARCH = "basicblock_16_1-21-21+fpn_2-4_48+rpn+rcnn_128+128x128"
EXAMPLES = examples(
    "smnas profile --gpu cpu --preset nano --sample 20 --table latency.db",
    f"smnas-profile --gpu local --arch {_ARCH}",
    "smnas-profile --gpu cpu --preset nano --sample 8 --audit 8 --table latency.db",
    f"smnas-profile --gpu v100 --estimate --arch {_ARCH} --precision fp16 --classes 20",
    "smnas profile --build-engines engines --backend tensorrt_rtx --precision fp16 --compute-capability 8.9 --sample 9",
    "smnas profile --table all.db --merge here.db --merge there.db",
    "smnas profile --table before.db --diff after.db --across backend_version",
    "smnas profile --table latency.db --validate",
    "smnas profile --table latency.db --export rows.parquet",
    "smnas profile --gpu cpu --preset small --budget 10m --table latency.db",
    f"smnas profile --gpu cpu --arch {_ARCH} --cold --builds 3 --table latency.db",
    f"smnas profile --table latency.db --report latency.html --arch {_ARCH}",
)


def profile(
    context: typer.Context,
    gpu: DeviceOption = "local",
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Cover this space: nano (default), small, paper or a .toml file.")
    ] = None,
    arch: Annotated[
        list[str] | None, typer.Option("--arch", metavar="ARCH", help="Cover this architecture; may be repeated.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Cover a random sample of the preset. Default: all structural choices.")
    ] = None,
    backend: BackendOption = "onnxruntime",
    precision: PrecisionOption = "fp32",
    batch: BatchOption = 1,
    threads: ThreadsOption = 1,
    classes: Annotated[int, typer.Option(min=1, help="Object classes of the detectors.")] = 80,
    table: TableOption = None,
    audit: Annotated[
        int, typer.Option(min=0, help="Compare predicted with measured latency on this many whole detectors.")
    ] = 0,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Start nothing after this long, as in 10m; the most useful come first."),
    ] = None,
    cold: Annotated[
        bool, typer.Option("--cold", help="Measure with flushed caches too, in rows that no prediction reads.")
    ] = False,
    builds: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Build a sample of blocks N times and say how far the builds differ."),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Roofline of a GPU that is not here, from its data sheet; labelled so.")
    ] = False,
    build_engines: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Measure nothing: build TensorRT-RTX engines of the blocks, without a GPU."),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(metavar="X.Y", help="With --build-engines: for these GPUs, as in 8.9; may be repeated."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --build-engines: processes that build. Default: 1.")
    ] = None,
    seed: SeedOption = 0,
    merge: Annotated[
        list[Path] | None,
        typer.Option("--merge", metavar="OTHER", help="Measure nothing: add another table's rows; may be repeated."),
    ] = None,
    diff: Annotated[
        Path | None,
        typer.Option("--diff", metavar="OTHER", help="Measure nothing: compare another table with --table."),
    ] = None,
    across: Annotated[
        list[str] | None,
        typer.Option("--across", metavar="FIELD", help="With --diff: pair rows that differ in it, such as device."),
    ] = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="Measure nothing: say what is wrong with --table, a line each.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE", help="Measure nothing: write rows as .csv, .json or .parquet."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="Measure nothing: draw --table as one page, with --arch its blocks too."
        ),
    ] = None,
    superseded: Annotated[bool, typer.Option("--superseded", help="With --export: superseded rows too.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure the blocks of detectors on a device.

    Builds or completes a latency table: every distinct block of the preset's structural choices, or of the given
    architectures, is exported and timed in the backend until the confidence interval of its median is narrow. What the
    table already holds is not measured again; interrupted, the same command resumes. The table's default name is
    latency-DEVICE.db. --audit measures whole detectors that the prediction has not seen and says how far it was off.
    Blocks that most detectors need come first, so a --budget that is too short is not lost.

    --build-engines exports and builds the same blocks as engines, each under a hash of what it was built from with a
    manifest beside it, for every compute capability that is given (or of --gpu's data sheet, or all). What is there is
    not built again.

    --merge, --diff, --validate, --export and --report work on tables that are there and measure nothing.
    """
    with Output.open(as_json=as_json, quiet=quiet) as output:
        if (task := latency_tables.task_of(context)) is not None:
            file = latency_tables.table_of(task, table)
            if task == "merge":
                latency_tables.merge(output, file, merge or [])
            elif task == "diff" and diff is not None:
                latency_tables.diff(output, file, diff, across or [])
            elif task == "report" and report is not None:
                latency_tables.report(output, file, report, arch or [], classes)
            elif task == "export" and export is not None:
                latency_tables.export(output, file, export, superseded=superseded)
            else:
                latency_tables.validate(output, file)
            return
        if arch and (preset is not None or sample is not None):
            flag = "--preset" if preset is not None else "--sample"
            raise UserError(f"{flag} and --arch exclude each other, but got both")
        if audit and (arch or estimate):
            raise UserError("--audit is for measured detectors of a preset: it excludes --arch and --estimate")
        if build_engines is not None and (audit or estimate or table is not None):
            raise UserError("--build-engines measures nothing: it excludes --audit, --estimate and --table")
        if budget is not None or cold or builds is not None:
            flag = "--budget" if budget is not None else "--cold" if cold else "--builds"
            if estimate or build_engines is not None:
                raise UserError(f"{flag} is about measuring: it excludes --estimate and --build-engines")
        budget_s = None if budget is None else seconds_of(budget)
        if build_engines is None and (compute_capability or workers is not None):
            raise UserError(f"{'--compute-capability' if compute_capability else '--workers'} is for --build-engines")

        from profiler.backends import get_backend
        from profiler.backends.base import check_precision
        from profiler.devices import DeviceNotPresentError, resolve_device
        from profiler.table.latency_table import LatencyTable
        from smnas.latency import profiling
        from smnas.latency.detector_latency import DetectorLatency
        from smnas.space.preset import load_space

        space = load_space(preset or "nano")
        wanted = profiling.given(arch) if arch else profiling.structures_of(space, sample, seed)
        if build_engines is not None:
            from smnas.latency import engines

            with Steps(output, "detectors covered") as steps:
                made = engines.build_engines(
                    build_engines,
                    wanted,
                    steps.at,
                    backend=backend,
                    gpu=gpu,
                    capabilities=compute_capability or (),
                    precision=precision,
                    classes=classes,
                    batch=batch,
                    workers=workers or 1,
                )
            output.result(made, lambda console: _show_engines(console, made))
            return
        file = table or Path(f"latency-{gpu}.db")
        if estimate:
            with Steps(output, "detectors estimated") as steps:
                estimates = profiling.estimate(gpu, file, wanted, classes, precision, batch, steps.at)
            output.result(estimates, lambda console: _show_estimate(console, estimates))
            return
        try:
            device = resolve_device(gpu)
        except DeviceNotPresentError as absent:
            # A table that was filled on that GPU is read anywhere; only measuring needs the GPU itself.
            if audit or cold or builds is not None or budget is not None or not file.exists():
                raise
            held = latency_tables.measured_on(absent.sheet, file, arch or (), classes)
            if not held["targets"]:
                raise UserError(
                    f"{file} must hold measurements of {absent.sheet.name}, as that GPU is not here, but it has none"
                ) from None
            output.result(held, lambda console: latency_tables.show_measured(console, held))
            return
        runner = get_backend(backend, device, threads=threads)
        check_precision(runner, precision)
        document = {
            "table": file,
            "device": runner.device.name,
            "backend": runner.name,
            "backend_version": runner.version,
            "precision": precision,
            "batch": batch,
            "threads": threads,
            "classes": classes,
            "detectors": len(wanted),
        }
        with LatencyTable(file) as rows:

            def make(told: "Callable[[Progress], None] | None") -> DetectorLatency:
                return DetectorLatency(
                    classes, runner, rows, precision=precision, batch=batch, seed=seed, on_progress=told
                )

            began = time.monotonic()

            def left_s() -> float | None:
                return None if budget_s is None else max(0.0, budget_s - (time.monotonic() - began))

            def in_budget() -> bool:
                return left_s() != 0.0

            with Steps(output, "detectors covered") as steps:
                if arch or sample is not None:
                    document |= profiling.measure(wanted, make, steps.at, budget_s=budget_s)
                else:
                    document |= profiling.measure_preset(
                        space.name, classes, wanted, make, rows, steps.at, budget_s=budget_s
                    )
            if cold:
                with Steps(output, "detectors covered with flushed caches") as steps:
                    document["cold"] = profiling.measure(wanted, make, steps.at, budget_s=left_s(), caches="cold")
            if builds is not None:
                with Steps(output, "blocks built again") as steps:
                    document["builds"] = profiling.rebuild(wanted, make, runner, builds, seed, steps.at, in_budget)
            if audit:
                with Steps(output, "detectors audited") as steps:
                    document["audit"] = profiling.audit(
                        space, audit, make, runner, seed, steps.at, table_path=file, in_budget=in_budget
                    )
        output.result(document, lambda console: _show(console, document))


def _show(console: Console, document: dict[str, Any]) -> None:
    drift = document["drift"]
    show_facts(
        console,
        [
            ("table", document["table"]),
            ("device", document["device"]),
            ("backend", f"{document['backend']} {document['backend_version']}, {document['precision']}"),
            ("detectors", f"{document['detectors']} covered"),
            ("blocks", f"{document['measured']} measured now, {document['cached']} found in the table"),
            (
                "unsteady",
                f"{len(document['unsteady'])} blocks kept a wide interval" if document["unsteady"] else "none",
            ),
            (
                "disturbed",
                f"{len(document['disturbed'])} blocks, by load, throttling or clocks: their rows say which"
                if document["disturbed"]
                else "none",
            ),
            ("drift", None if drift is None else f"{drift:+.1%} of the reference block while measuring"),
            ("left", _left(document["left"])),
        ],
    )
    if "cold" in document:
        found = document["cold"]
        console.print(f"with flushed caches: {found['measured']} measured now, {found['cached']} found in the table")
    if "builds" in document:
        _show_builds(console, document["builds"])
    for name, reason in document["failed"].items():
        console.print(f"failed: {name}: {reason}", soft_wrap=True, markup=False)
    if "audit" in document:
        show_audit(console, document["audit"])


def _left(left: dict[str, int]) -> str:
    if not any(left.values()):
        return "nothing"
    return f"{left['blocks']} blocks and {left['detectors']} detectors not looked at; the same command goes on"


def _show_builds(console: Console, builds: list[dict[str, Any]]) -> None:
    rows = [
        [row["name"], min(row["medians_ms"]), max(row["medians_ms"]), f"{row['spread']:.1%}", row["differs"]]
        for row in builds
    ]
    show_table(console, ["built again", "fastest ms", "slowest ms", "spread", "in every round"], rows)


def _show_estimate(console: Console, document: dict[str, Any]) -> None:
    console.print(f"{document['device']}: {document['kind']}", soft_wrap=True, markup=False)
    rows = [[row["sum_ms"], row["low_ms"], row["high_ms"], row["architecture"]] for row in document["architectures"]]
    show_table(console, ["sum of blocks, ms", "at best", "at worst", "architecture"], rows)
    for one in document["compared"]:
        console.print(
            f"on {one['device']} ({one['backend']}, {one['precision']}) {one['blocks']} measured blocks take "
            f"{one['measured_against_estimate']:.2g} times their estimate in the median, {one['inside_interval']:.0%} "
            f"lie between best and worst",
            soft_wrap=True,
            markup=False,
        )
    if not document["compared"]:
        console.print("the table holds no GPU's measurements to compare estimates with")
    console.print(f"{document['added']} estimates added to {document['table']}", soft_wrap=True, markup=False)


def _show_engines(console: Console, document: dict[str, Any]) -> None:
    """The document for a person: failures once a reason."""
    show_facts(
        console,
        [
            ("engines", document["folder"]),
            ("backend", f"{document['backend']} {document['backend_version']}, {document['precision']}"),
            ("capabilities", ", ".join(document["compute_capabilities"])),
            ("detectors", f"{document['detectors']} covered"),
            ("results", f"{document['built']} built now, {document['cached']} found, {len(document['failed'])} failed"),
        ],
    )
    for name, reason in sorted({(one["name"], one["reason"]) for one in document["failed"]}):
        console.print(f"failed: {name}: {reason}", soft_wrap=True, markup=False)
