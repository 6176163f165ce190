"""Page of a latency table: one self-contained HTML file."""

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from profiler.table.latency_table import LatencyTable
from smnas.latency.audit_file import AuditPoint, read_audit
from smnas.report import latency_figures
from smnas.report.blocks import block_latencies
from smnas.report.data import BlockLatency
from smnas.report.latency_data import TableView, choose_target, read_view
from smnas.report.page import render_page, write_page
from smnas.space.architecture import Architecture

__all__ = ["render_latency_page", "write_latency_page"]

_SHOWN_BLOCKS = 25


def write_latency_page(table: Path, out: Path, *, architectures: Sequence[str] = (), classes: int = 80) -> TableView:
    """Write the page of a table, for the target with the most measurements.

    Args:
        table: Latency table, only read.
        out: File to write, atomically.
        architectures: Detectors to show block by block.
        classes: Their object classes.

    Raises:
        UserError: no measurement, a missing block of these detectors, or ``out`` cannot be written.
    """
    with LatencyTable(table, read_only=True) as rows:
        target = choose_target(rows)
        view = read_view(rows, target)
        detectors = {
            text: block_latencies(rows, target, Architecture.parse(text), classes)
            for text in dict.fromkeys(architectures)
        }
    write_page(out, render_latency_page(table.name, view, read_audit(table, target), detectors))
    return view


def render_latency_page(
    name: str,
    view: TableView,
    audit: Sequence[AuditPoint] = (),
    detectors: dict[str, tuple[BlockLatency, ...]] | None = None,
) -> str:
    """Render the page as text.

    Args:
        name: Of the table.
        view: Its rows.
        audit: Predicted against measured end-to-end latencies.
        detectors: Blocks with their latencies, by architecture.
    """
    drawn: dict[str, go.Figure] = {}
    if view.points and view.roof is not None:
        drawn["blocks"] = latency_figures.blocks_figure(view.points)
        drawn["roofline"] = latency_figures.roofline_figure(view.points, view.roof)
    if audit:
        drawn["audit"] = latency_figures.audit_figure(audit)
    errors = [abs(point.predicted_ms / point.measured_ms - 1) for point in audit]
    return render_page(
        "latency.html",
        drawn,
        name=name,
        view=view,
        target=view.target,
        facts=view.facts,
        shown=view.points[:_SHOWN_BLOCKS],
        audited=len(audit),
        mean_error=sum(errors) / len(errors) if errors else None,
        within_10=sum(error <= 0.1 for error in errors) / len(errors) if errors else None,
        detectors=detectors or {},
    )
