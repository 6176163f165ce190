"""Values behind the page of a latency table: blocks with their work, the roofline, an audit."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from profiler.devices import GpuSheet, gpu_sheets, matching_names
from profiler.errors import UserError
from profiler.prediction.estimate import ESTIMATE_BACKEND, Roof, float_bytes
from profiler.prediction.predict import FailedPartError, MissingPartsError, sum_parts
from profiler.table.latency_table import LatencyTable, Row, Target
from profiler.work import Work
from smnas.latency.workloads import detector_workloads
from smnas.space.architecture import Architecture

__all__ = ["BlockPoint", "TableView", "choose_target", "measured_targets", "read_view"]


@dataclass(frozen=True)
class BlockPoint:
    """One measured block with its work.

    Attributes:
        work: Its class, its FLOPs in one run, and channels and positions, the batch included, of its largest input.
        latency_ms: Median, with its interval ``low_ms`` to ``high_ms``.
        bytes_moved: Inputs, outputs and weights once.
        bound_ms: Lower bound of a run by the roofline.
    """

    name: str
    work: Work
    low_ms: float
    latency_ms: float
    high_ms: float
    bytes_moved: int
    bound_ms: float


@dataclass(frozen=True)
class TableFacts:
    """Counts of a target's rows.

    Attributes:
        blocks: Measured blocks.
        detectors: Measured whole detectors.
        cold: Rows with flushed caches.
        failed: Name and reason of every failure.
        disturbed: Rows measured on a disturbed machine.
        unsteady: Name and medians of the rounds in ms of every row whose rounds disagree.
        without_work: Measured blocks without their work, as older releases wrote them.
    """

    blocks: int
    detectors: int
    cold: int
    failed: tuple[tuple[str, str], ...]
    disturbed: int
    unsteady: tuple[tuple[str, tuple[float, ...]], ...]
    without_work: int


@dataclass(frozen=True)
class TableView:
    """A latency table for one target.

    Attributes:
        points: Blocks, slowest first.
        roof: Roofline of the blocks; ``None`` without any.
        roof_text: Source of the roofline.
    """

    target: Target
    facts: TableFacts
    points: tuple[BlockPoint, ...]
    roof: Roof | None
    roof_text: str


def choose_target(table: LatencyTable) -> Target:
    """Target with the most current measurements; :class:`UserError` if the table holds none."""
    counts = Counter(row.target for row in table.rows() if row.target.backend != ESTIMATE_BACKEND)
    if not counts:
        raise UserError(f"a report shows measurements, but {table.path} holds none")
    return min(counts, key=lambda target: (-counts[target], repr(target)))


def read_view(table: LatencyTable, target: Target) -> TableView:
    """Read the rows of a target."""
    rows = table.current(target).values()
    hot = [row for row in rows if row.conditions.get("caches", "hot") == "hot"]
    parts = [row for row in hot if row.kind == "part" and row.status == "ok"]
    worked = [(row, work) for row in parts if (work := Work.from_dict(row.conditions.get("work"))) is not None]
    roof, text = _roof(worked, target)
    points = [_point(row, work, roof) for row, work in worked] if roof is not None else []
    facts = TableFacts(
        blocks=len(parts),
        detectors=sum(row.kind == "whole" and row.status == "ok" for row in hot),
        cold=len(rows) - len(hot),
        failed=tuple((row.name, row.reason) for row in rows if row.status == "failed"),
        disturbed=sum(bool(row.conditions.get("disturbances")) for row in rows),
        unsteady=tuple(
            (row.name, tuple(one["median_ms"] for one in row.conditions["rounds"]))
            for row in rows
            if row.trouble == "unsteady"
        ),
        without_work=len(parts) - len(worked),
    )
    return TableView(target, facts, tuple(sorted(points, key=lambda point: -point.latency_ms)), roof, text)


def _roof(worked: list[tuple[Row, Work]], target: Target) -> tuple[Roof | None, str]:
    if not worked:
        return None, ""
    sheet = next((sheet for sheet in gpu_sheets().values() if matching_names(sheet, [target.device])), None)
    if sheet is not None and target.precision in ("fp32", "fp16"):
        return Roof.of_sheet(sheet, target.precision), f"the data sheet of {sheet.title}"
    measured = [(work, row.median_ms) for row, work in worked if row.median_ms is not None]
    return Roof.reached(measured, float_bytes(target.precision)), "the highest rates that any block has reached here"


def _point(row: Row, work: Work, roof: Roof) -> BlockPoint:
    if row.interval is None:
        raise TypeError(f"only a measured row is shown, but got {row}")
    return BlockPoint(row.name, work, *row.interval, work.bytes_moved(roof.float_bytes), roof.bound_ms(work))


def measured_targets(
    table: LatencyTable, sheet: GpuSheet, architectures: Sequence[Architecture], classes: int
) -> list[dict[str, Any]]:
    """What a table holds of a GPU, for each backend and precision.

    Returns:
        The target's fields, the number of ``blocks``, ``detectors``, ``failed`` and ``disturbed`` rows, and
        ``sums_ms``: the sum of each architecture's blocks, None where one is missing or failed.
    """
    held = [target for target in table.targets() if target.backend != ESTIMATE_BACKEND]
    names = matching_names(sheet, [target.device for target in held])
    found = []
    for target in (target for target in held if target.device in names):
        facts, rows = read_view(table, target).facts, table.current(target)
        sums: dict[str, float | None] = {}
        for architecture in architectures:
            try:
                keys = [part.key for part in detector_workloads(architecture, classes, target.batch)]
                sums[str(architecture)] = sum_parts(keys, rows).ms
            except (MissingPartsError, FailedPartError):
                sums[str(architecture)] = None
        counts = {"blocks": facts.blocks, "detectors": facts.detectors, "failed": len(facts.failed)}
        found.append({**asdict(target), **counts, "disturbed": facts.disturbed, "sums_ms": sums})
    return found
