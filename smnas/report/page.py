"""The report page: one HTML file with everything inside, which opens from a disk without a network."""

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup, escape
from PIL import Image
from plotly.offline import get_plotlyjs

from smnas.report import data, figures
from smnas.report.run_folder import RunFolder, read_run_folder
from smnas.report.verdict import verdict

__all__ = ["Sample", "render_report", "write_report"]

_SAMPLE_SIDE = 900
_NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Sample:
    """A picture for the page, its boxes already drawn."""

    caption: str
    picture: Image.Image


def write_report(
    run_folder: Path,
    out: Path | None = None,
    *,
    samples: Sequence[Sample] = (),
    blocks: Sequence[data.BlockLatency] = (),
) -> Path:
    """Write the report of a run folder.

    Args:
        run_folder: What ``smnas-search --out`` wrote; it may still be running.
        out: The file to write; ``run_folder/report.html`` by default.
        samples: Pictures with drawn detections of the winner.
        blocks: The winner's workloads with their latencies.

    Returns:
        The file that was written. It is replaced in one step, so a reader never sees half a page.

    Raises:
        RunFolderError: ``run_folder`` is no run folder of this version.
    """
    run = read_run_folder(run_folder)
    target = out or run_folder / "report.html"
    partial = target.with_name(target.name + ".partial")
    partial.write_text(render_report(run, samples=samples, blocks=blocks), encoding="utf-8")
    partial.replace(target)
    return target


def render_report(run: RunFolder, *, samples: Sequence[Sample] = (), blocks: Sequence[data.BlockLatency] = ()) -> str:
    """The page as text; the arguments are those of :func:`write_report`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(
        arch=_architecture,
        breakable=_breakable,
        num=_number,
        count=_count,
        interval=_interval,
        percent=_percent,
        spread=_spread,
    )
    fronts = data.fronts(run)
    growth = data.hypervolume_by_training(run)
    drawn = {}
    if fronts:
        drawn["front"] = figures.front_figure(fronts, run.ranking)
    if growth is not None:
        drawn["hypervolume"] = figures.hypervolume_figure(growth)
    for key, label in (("ap", "AP"), ("loss", "training loss")):
        if lines := data.training_curves(run, key):
            drawn[f"curve-{key}"] = figures.curves_figure(lines, label, run.ranking)
    return environment.get_template("page.html").render(
        run=run,
        ranking=run.ranking,
        winner=run.ranking.row(run.ranking.winner),
        verdict=verdict(run.ranking),
        fronts=fronts,
        growth=growth,
        families=data.families(run),
        failed=data.outcomes(run, "failed"),
        pruned=data.outcomes(run, "pruned"),
        running=data.outcomes(run, "running"),
        blocks=blocks,
        block_total=sum(block.latency_ms for block in blocks),
        block_max=max((block.latency_ms for block in blocks), default=0.0),
        settings=data.settings_rows(run.settings),
        samples=[(sample.caption, _data_uri(sample.picture)) for sample in samples],
        figures={name: _embedded_json(figure) for name, figure in drawn.items()},
        stylesheet=Markup((Path(__file__).parent / "page.css").read_text(encoding="utf-8")),
        plotly_js=Markup(get_plotlyjs()) if drawn else "",
    )


def _embedded_json(figure: go.Figure) -> Markup:
    """A figure for a ``<script type="application/json">``: a ``<`` inside could end the element early."""
    specification = figure.to_plotly_json()
    # The default template is 7 kB of colours for trace types that the page does not use; the page brings its own.
    specification["layout"].pop("template", None)
    text = json.dumps(specification, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _data_uri(picture: Image.Image) -> str:
    smaller = picture.convert("RGB")
    smaller.thumbnail((_SAMPLE_SIDE, _SAMPLE_SIDE))
    buffer = io.BytesIO()
    smaller.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _architecture(text: str) -> Markup:
    return Markup('<code class="arch">{}</code>').format(
        Markup("+<wbr>").join(escape(part) for part in text.split("+"))
    )


def _breakable(name: str) -> Markup:
    """A dotted name that may break behind a dot or an underscore, so that a phone does not break it inside a word."""
    return escape(name).replace(".", Markup(".<wbr>")).replace("_", Markup("_<wbr>"))


def _number(value: float | None, digits: int) -> str:
    return _NOTHING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _spread(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"\N{PLUS-MINUS SIGN}{value:.3f}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _percent(value: float | None) -> str:
    return _NOTHING if value is None else f"{100 * value:+.0f} %"


def _count(value: float | None) -> str:
    if value is None:
        return _NOTHING
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"
