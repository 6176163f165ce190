"""Plotly figures from the report's plot data. Text and grid take their colours from the page, for dark mode."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from smnas.report.data import CurveLine, FrontPoint, Hypervolume
from smnas.report.run_folder import RunFolder
from smnas.search.ranking.ranking import RankingRow

__all__ = [
    "LINES",
    "curves_figure",
    "front_figure",
    "hypervolume_figure",
    "intervals",
    "layout",
    "wrapped",
]

# Mid-tones with a contrast of 3:1 or more on the page's white and on its near-black.
_STAGE_COLOURS = {
    "warm": "#7f6ad6",
    "structural": "#2f7ed8",
    "modular": "#1f9d6b",
    "joint": "#1f9d6b",
    "final": "#c2569b",
    "baseline": "#d9822b",
}
LINES = ("#2f7ed8", "#1f9d6b", "#c2569b", "#d9822b", "#7f6ad6", "#3aa3b8", "#a8862b", "#d2555a")
_STAGE_NAMES = {
    "warm": "other runs",
    "structural": "stage 1",
    "modular": "stage 2",
    "joint": "search",
    "final": "ranked",
}
_INTERVAL = {"thickness": 1.2, "width": 3}


def layout(x: str, y: str, height: int) -> dict[str, Any]:
    """Layout shared by all figures, with axis titles."""
    return {
        "height": height,
        "margin": {"l": 52, "r": 12, "t": 10, "b": 44},
        "xaxis": {"title": {"text": x, "standoff": 8}, "automargin": True, "zeroline": False},
        "yaxis": {"title": {"text": y, "standoff": 8}, "automargin": True, "zeroline": False},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": -0.2,
            "yanchor": "top",
            "itemsizing": "constant",
        },
        "hoverlabel": {"align": "left"},
        "hovermode": "closest",
    }


def wrapped(architecture: str) -> str:
    """Architecture as hover text, one component a line."""
    return html.escape(architecture).replace("+", "<br>+")


def _hover(point: FrontPoint) -> str:
    interval = ""
    if point.latency_low_ms is not None and point.latency_high_ms is not None:
        interval = f" ({point.latency_low_ms:.2f} to {point.latency_high_ms:.2f})"
    if point.latency_measured is not None:
        interval += f", {point.latency_measured:.0%} of it measured"
    spread = "" if point.ap_std is None else f" \N{PLUS-MINUS SIGN} {point.ap_std:.3f}"
    return f"{wrapped(point.architecture)}<br>AP {point.ap:.3f}{spread}<br>{point.latency_ms:.2f} ms{interval}"


def intervals(values: Iterable[tuple[float | None, float, float | None]], **style: object) -> dict[str, Any]:
    """Error bars of values between their lower and upper ends; unknown ends draw none."""
    rows = list(values)
    below = [0.0 if low is None else max(middle - low, 0.0) for low, middle, _ in rows]
    above = [0.0 if high is None else max(high - middle, 0.0) for _, middle, high in rows]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **style}


def front_figure(
    fronts: Mapping[str, Sequence[FrontPoint]], baseline: RankingRow | None, winner: RankingRow | None
) -> go.Figure:
    """AP against latency: detectors of every stage, fronts as staircases, baseline and winner marked."""
    figure = go.Figure(layout=layout("predicted latency (ms)", "AP", 440))
    figure.update_yaxes(rangemode="nonnegative")
    for stage, points in fronts.items():
        colour, name = _STAGE_COLOURS[stage], _STAGE_NAMES[stage]
        best = [p for p in points if p.on_front]
        figure.add_scatter(
            x=[p.latency_ms for p in best],
            y=[p.ap for p in best],
            mode="lines",
            line={"shape": "hv", "color": colour, "width": 1.5},
            legendgroup=stage,
            showlegend=False,
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=[p.latency_ms for p in points],
            y=[p.ap for p in points],
            error_x=intervals(
                ((p.latency_low_ms, p.latency_ms, p.latency_high_ms) for p in points), color=colour, **_INTERVAL
            ),
            error_y={
                "type": "data",
                "array": [p.ap_std or 0.0 for p in points],
                "visible": any(p.ap_std for p in points),
                "color": colour,
                **_INTERVAL,
            },
            mode="markers",
            marker={"color": colour, "size": [9 if p.on_front else 6 for p in points]},
            opacity=0.9,
            text=[_hover(p) for p in points],
            hoverinfo="text",
            name=name,
            legendgroup=stage,
        )
    _mark(figure, baseline, "baseline", "star", _STAGE_COLOURS["baseline"], 14)
    _mark(figure, winner, "recommended", "circle-open", "#d2555a", 19)
    return figure


def _mark(figure: go.Figure, row: RankingRow | None, name: str, symbol: str, colour: str, size: int) -> None:
    if row is None:
        return
    figure.add_scatter(
        x=[row.predicted_latency_ms],
        y=[row.ap],
        mode="markers",
        marker={"symbol": symbol, "color": colour, "size": size, "line": {"width": 2.5, "color": colour}},
        name=name,
        text=[f"{name}<br>{wrapped(row.architecture)}<br>AP {row.ap:.3f}<br>{row.predicted_latency_ms:.2f} ms"],
        hoverinfo="text",
    )


def hypervolume_figure(growth: Hypervolume) -> go.Figure:
    """Dominated fraction of the box against finished training runs."""
    figure = go.Figure(layout=layout("finished training runs", "dominated share of the box", 320))
    figure.update_yaxes(rangemode="tozero")
    figure.add_scatter(
        x=list(growth.training_runs),
        y=list(growth.share),
        mode="lines+markers",
        line={"shape": "hv", "color": _STAGE_COLOURS["structural"]},
        marker={"size": 5},
        text=[
            f"training {n}, {epochs} epochs spent<br>share {share:.4f}"
            for n, epochs, share in zip(growth.training_runs, growth.epochs, growth.share, strict=True)
        ],
        hoverinfo="text",
        showlegend=False,
    )
    return figure


def curves_figure(lines: Sequence[CurveLine], label: str, run: RunFolder) -> go.Figure:
    """One line for each training run; seeds of one architecture share a colour and a legend entry (its rank)."""
    figure = go.Figure(layout=layout("epoch", label, 340))
    architectures = list(dict.fromkeys(line.architecture for line in lines))
    shown: set[str] = set()
    for line in lines:
        row = run.row(line.architecture)
        name = f"rank {row.rank}" if row is not None else line.architecture.split("+", maxsplit=1)[0]
        figure.add_scatter(
            x=list(line.epochs),
            y=list(line.values),
            mode="lines",
            line={"color": LINES[architectures.index(line.architecture) % len(LINES)], "width": 1.6},
            name=name + (" (baseline)" if row is not None and row.role == "baseline" else ""),
            legendgroup=line.architecture,
            showlegend=line.architecture not in shown,
            text=[f"{wrapped(line.architecture)}<br>{line.run}<br>{label} {value:.4g}" for value in line.values],
            hoverinfo="text",
        )
        shown.add(line.architecture)
    return figure
