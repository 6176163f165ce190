"""Plotly figures of a latency table's page."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from profiler.prediction.estimate import Roof
from smnas.latency.audit_file import AuditPoint
from smnas.report.figures import LINES, intervals, layout, wrapped
from smnas.report.latency_data import BlockPoint

__all__ = ["audit_figure", "blocks_figure", "roofline_figure"]

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
_INTERVAL = {"thickness": 1, "width": 2}


def blocks_figure(points: Sequence[BlockPoint]) -> go.Figure:
    """Latency against width, coloured by kind of block and sized by resolution."""
    figure = _logarithmic("channels of the input", "latency (ms)", 460)
    largest = max((point.work.cells for point in points), default=1)
    for index, family in enumerate(_families(points)):
        own = [point for point in points if point.work.family == family]
        figure.add_scatter(
            x=[point.work.channels for point in own],
            y=[point.latency_ms for point in own],
            error_y=intervals(((point.low_ms, point.latency_ms, point.high_ms) for point in own), **_INTERVAL),
            **_markers(index, family, own, [5 + 13 * (point.work.cells / largest) ** 0.25 for point in own]),
        )
    return figure


def roofline_figure(points: Sequence[BlockPoint], roof: Roof) -> go.Figure:
    """Achieved operations per second against operations per byte, below the roofline."""
    figure = _logarithmic("operations per byte", "reached, GFLOP/s", 440)
    computing = [point for point in points if point.work.flops]
    if not computing:
        return figure
    intensity = [point.work.flops / point.bytes_moved for point in computing]
    line = np.geomspace(min(intensity) / 2, max(intensity) * 2, 60)
    _dashed(figure, line.tolist(), (np.minimum(line * roof.bytes_per_s, roof.flops_per_s) / 1e9).tolist(), "roof")
    for index, family in enumerate(_families(points)):
        own = [(x, point) for x, point in zip(intensity, computing, strict=True) if point.work.family == family]
        if not own:
            continue
        figure.add_scatter(
            x=[x for x, _ in own],
            y=[point.work.flops / point.latency_ms / 1e6 for _, point in own],
            **_markers(index, family, [point for _, point in own], 7),
        )
    return figure


def audit_figure(points: Sequence[AuditPoint]) -> go.Figure:
    """Predicted against measured end-to-end latency of held-out detectors, with intervals and the line of equality."""
    figure = _logarithmic("measured (ms)", "predicted (ms)", 440)
    ends = [min(point.measured_ms for point in points), max(point.measured_ms for point in points)]
    _dashed(figure, ends, ends, "equal")
    figure.add_scatter(
        x=[point.measured_ms for point in points],
        y=[point.predicted_ms for point in points],
        error_y=intervals(
            ((point.low_ms, point.predicted_ms, point.high_ms) for point in points), color=LINES[0], **_INTERVAL
        ),
        mode="markers",
        marker={"color": LINES[0], "size": 7},
        text=[
            f"{wrapped(point.architecture)}<br>measured {point.measured_ms:.3g} ms<br>predicted "
            f"{point.predicted_ms:.3g} ms ({point.predicted_ms / point.measured_ms - 1:+.1%})"
            for point in points
        ],
        hoverinfo="text",
        name="held-out detectors",
    )
    return figure


def _logarithmic(x: str, y: str, height: int) -> go.Figure:
    figure = go.Figure(layout=layout(x, y, height))
    # Labels at 1, 2 and 5 of every decade: at all nine digits they overlap.
    figure.update_xaxes(type="log", dtick="D2")
    figure.update_yaxes(type="log", dtick="D2")
    return figure


def _dashed(figure: go.Figure, x: list[float], y: list[float], name: str) -> None:
    line = {"color": "#7a8699", "width": 1.5, "dash": "dash"}
    figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", name=name)


def _markers(index: int, family: str, points: Sequence[BlockPoint], size: float | list[float]) -> dict[str, Any]:
    """Markers of a family, the ``index``-th, with their legend and hover texts."""
    colour, symbol = LINES[index % len(LINES)], _SYMBOLS[index // len(LINES) % len(_SYMBOLS)]
    marker = {"color": colour, "symbol": symbol, "size": size, "opacity": 0.75}
    texts = [_hover(point) for point in points]
    return {"mode": "markers", "marker": marker, "text": texts, "hoverinfo": "text", "name": html.escape(family)}


def _families(points: Sequence[BlockPoint]) -> list[str]:
    return sorted({point.work.family for point in points})


def _hover(point: BlockPoint) -> str:
    return (
        f"{html.escape(point.name)}<br>"
        f"{html.escape(point.work.family)}, {point.work.channels} channels, {point.work.cells:,} cells<br>"
        f"{point.latency_ms:.4g} ms ({point.low_ms:.4g} to {point.high_ms:.4g})<br>"
        f"{point.latency_ms / point.bound_ms:.1f} times the roofline's {point.bound_ms:.3g} ms"
    )
