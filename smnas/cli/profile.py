"""``smnas profile``: measure the blocks of a preset or of architectures into a latency table."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from profiler.errors import UserError
from smnas.cli.terminal.audit_display import show_audit
from smnas.cli.terminal.console import Output, show_facts, show_table
from smnas.cli.terminal.options import BatchOption, ClassesOption, MeasuringOptions, examples, require_cores
from smnas.cli.terminal.progress import PhaseSteps

if TYPE_CHECKING:
    from smnas.api import Profile

__all__ = ["EXAMPLES", "ProfileOptions", "profile"]

_ARCH = "basicblock_16_1-21-21+fpn_2-4_48+rpn+rcnn_128+128x128"
EXAMPLES = examples(
    "smnas profile --device cpu --preset nano --sample 20 --table latency.db",
    f"smnas-profile --device local --arch {_ARCH}",
    "smnas-profile --device cpu --preset nano --sample 8 --audit 8 --table latency.db",
    f"smnas-profile --device v100 --estimate --arch {_ARCH} --precision fp16 --classes 20",
    "smnas profile --build-engines engines --backend tensorrt-rtx --precision fp16 --compute-capability 8.9 --sample 9",
    "smnas profile --device cpu --preset small --time-limit 10m --table latency.db",
    f"smnas profile --device cpu --arch {_ARCH} --cold --builds 3 --table latency.db",
    "smnas profile --device local --preset nano --sample 12 --end-to-end --table this-device.db",
    "smnas profile --device local --for my-run/request.json --table this-device.db",
    "smnas profile --device cpu --preset nano --refresh unsteady --table latency.db",
)
_MEASURING = ("audit", "time_limit", "rounds", "cold", "builds", "end_to_end", "refresh")
"""Options that need the device."""
_EXCLUSIVE = {
    "arch": ("preset", "sample", "audit"),
    "run": ("arch", "preset", "sample", "audit", "backend", "precision", "threads", "classes", "batch", "estimate"),
    "estimate": _MEASURING,
    "refresh": ("run", "audit", "cold", "builds", "end_to_end"),
    "build_engines": ("run", "estimate", *_MEASURING, "table"),
}
"""Options that exclude each other."""


@dataclass(frozen=True, kw_only=True)
class ProfileOptions(MeasuringOptions):
    """Options of ``smnas profile``."""

    preset: Annotated[str | None, typer.Option(metavar="NAME")] = None
    arch: Annotated[list[str] | None, typer.Option("--arch", metavar="ARCH")] = None
    sample: Annotated[int | None, typer.Option(min=1)] = None
    run: Annotated[Path | None, typer.Option("--for", metavar="RUN")] = None
    accept_version: Annotated[str | None, typer.Option(metavar="VERSION")] = None
    threads: Annotated[
        str, typer.Option(metavar="N[,N]", help="CPU threads of a measured run; 1,2 measures with one, then with two.")
    ] = "1"
    batch: BatchOption = 1
    classes: ClassesOption = 80
    audit: Annotated[int, typer.Option(min=0)] = 0
    cold: Annotated[bool, typer.Option("--cold")] = False
    builds: Annotated[int | None, typer.Option(min=2, metavar="N")] = None
    end_to_end: Annotated[bool, typer.Option("--end-to-end")] = False
    refresh: Annotated[str | None, typer.Option(metavar="unsteady")] = None
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Roofline of a GPU that is not here, from its data sheet; labelled so.")
    ] = False
    build_engines: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Measure nothing: build TensorRT-RTX engines of the blocks, without a GPU."),
    ] = None
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(metavar="X.Y", help="With --build-engines: for these GPUs, as in 8.9; may be repeated."),
    ] = None
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --build-engines: processes that build. Default: 1.")
    ] = None

    def given(self) -> dict[str, Any]:
        """Options that differ from their defaults."""
        return {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}

    def for_call(self, *others: str) -> dict[str, Any]:
        """Arguments shared by all calls, and these others."""
        shared = ("preset", "arch", "sample", "device", "precision", "batch", "classes", "seed", *others)
        return {name: value for name, value in self.values().items() if name in shared}


def profile(options: ProfileOptions) -> None:
    """Measure the blocks of detectors on a device.

    Builds or completes a latency table: every distinct block of the preset's structural choices, or of the given
    architectures, is exported and timed in the backend until the confidence interval of its median is narrow. Blocks
    already in the table are not measured again; an interrupted command resumes. The default table is latency-DEVICE.db.
    --audit measures unseen whole detectors and reports the prediction error. Blocks that most detectors need come
    first, so a --time-limit that is too short is not wasted.

    --build-engines exports and builds the same blocks as engines, each under a hash of its inputs with a manifest
    beside it, for every given compute capability (default: of --device's data sheet, or all). Existing engines are not
    built again.

    To merge, compare, check, export or draw an existing table use smnas table.
    """
    with Output.open(as_json=options.as_json, quiet=options.quiet) as output:
        given = options.given()
        for one, others in _EXCLUSIVE.items():
            if one in given and (other := next((name for name in others if name in given), None)):
                raise UserError(f"{_flag(other)} and {_flag(one)} exclude each other, but got both")
        if options.run is None and options.accept_version is not None:
            raise UserError("--accept-version is for --for, but got it without")
        if options.build_engines is None and (alone := given.keys() & {"compute_capability", "workers"}):
            raise UserError(f"{_flag(min(alone))} is for --build-engines, but got it without")

        from profiler.devices import DeviceNotPresentError
        from smnas import api

        with PhaseSteps(output) as steps:
            if options.build_engines is not None:
                values = options.for_call("backend", "compute_capability", "workers")
                built = api.build_engines(options.build_engines, **values, on_progress=steps.step)
                document, show = built, _show_engines
            elif options.estimate:
                document = api.estimate(**options.for_call("table"), on_progress=steps.step)
                show = _show_estimate
            else:
                try:
                    call = options.for_call("backend", "table", "run", "accept_version", *_MEASURING)
                    counts = _thread_counts(options.threads)
                    found = [_document(api.profile(**call, threads=one, on_progress=steps.step)) for one in counts]
                    document, show = found[0], _show
                    if len(found) > 1:
                        document, show = {"by_threads": found}, _show_by_threads
                except DeviceNotPresentError as absent:
                    # A table from that GPU can be read anywhere; only measuring needs the GPU.
                    file = options.table or Path(f"latency-{options.device}.db")
                    if given.keys() & {"run", *_MEASURING} or not file.exists():
                        raise
                    document = api.measured(absent.sheet.name, file, arch=options.arch or (), classes=options.classes)
                    show = _show_measured
                if options.refresh and document.get("measured") == 0 and not document["left"]["blocks"]:
                    show = _show_steady
        output.result(document, lambda console: show(console, document))


def _thread_counts(text: str) -> list[int]:
    counts = [int(word) if word.strip().isdecimal() else 0 for word in text.split(",")]
    if min(counts) < 1 or len(set(counts)) < len(counts):
        raise UserError(f"--threads is a number of at least 1, or distinct ones as in 1,2, but got {text!r}")
    return [require_cores(count) for count in counts]


def _flag(name: str) -> str:
    return "--for" if name == "run" else f"--{name.replace('_', '-')}"


def _document(found: "Profile") -> dict[str, Any]:
    document = {one.name: getattr(found, one.name) for one in fields(found)}
    document |= asdict(document.pop("blocks"))
    cold, builds, audit = (document.pop(name) for name in ("cold", "builds", "audit"))
    if document["end_to_end_ms"] is None:
        del document["end_to_end_ms"]
    if cold is not None:
        document["cold"] = asdict(cold)
    if builds is not None:
        document["builds"] = [{**asdict(one), "spread": one.spread, "differs": one.differs} for one in builds]
    if audit is not None:
        document["audit"] = audit.as_dict()
    return document


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
                "wide intervals",
                f"{len(document['wide'])} blocks" if document["wide"] else "none",
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
    for name, found in document.get("end_to_end_ms", {}).items():
        console.print(f"end to end: {name}: {_latency(found)}", soft_wrap=True, markup=False)
    if "builds" in document:
        _show_builds(console, document["builds"])
    for name, reason in document["failed"].items():
        console.print(f"failed: {name}: {reason}", soft_wrap=True, markup=False)
    if "audit" in document:
        show_audit(console, document["audit"])


def _show_by_threads(console: Console, document: dict[str, Any]) -> None:
    """Print every part, then the detectors' latencies side by side."""
    parts = document["by_threads"]
    for part in parts:
        console.print(f"CPU threads: {part['threads']}")
        _show(console, part)
    if wholes := parts[0].get("end_to_end_ms"):
        rows = [[*(_latency(part["end_to_end_ms"].get(name, "left")) for part in parts), name] for name in wholes]
        show_table(console, [*(f"{part['threads']} threads" for part in parts), "detector"], rows)


def _show_steady(console: Console, document: dict[str, Any]) -> None:
    console.print(f"no rounds of a row in {document['table']} disagree", soft_wrap=True, markup=False)


def _latency(found: float | str) -> str:
    return found if isinstance(found, str) else f"{found:.4g} ms"


def _left(left: dict[str, int]) -> str:
    if not any(left.values()):
        return "nothing"
    return f"{left['blocks']} blocks and {left['detectors']} detectors not looked at; the same command resumes"


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
    """Print the document; each reason of failure once."""
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


def _show_measured(console: Console, document: dict[str, Any]) -> None:
    console.print(f"{document['table']}: measured on {document['gpu']}, read here", soft_wrap=True, markup=False)
    names = [
        "device",
        "backend",
        "backend_version",
        "precision",
        "batch",
        "blocks",
        "detectors",
        "failed",
        "disturbed",
    ]
    rows = [[target[name] for name in names] for target in document["targets"]]
    show_table(console, [name.replace("_", " ") for name in names], rows)
    for target in document["targets"]:
        for architecture, ms in target["sums_ms"].items():
            found = "not all blocks measured" if ms is None else f"{ms:.4g} ms, sum of blocks"
            console.print(
                f"{target['backend']} {target['precision']}: {architecture}: {found}", soft_wrap=True, markup=False
            )
