"""The report page: one self-contained HTML file."""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup, escape
from PIL import Image
from plotly.offline import get_plotlyjs

from profiler.atomic import write_atomic
from profiler.errors import UserError
from smnas.data.coco import CocoFolder
from smnas.report import data, figures
from smnas.report.blocks import blocks_of_run
from smnas.report.controls import score_controls
from smnas.report.importance import importances
from smnas.report.run_folder import RunFolder, read_run_folder
from smnas.report.samples import Sample, sample_detections
from smnas.report.verdict import verdict
from smnas.search.ranking.recommendation import band_limits
from smnas.search.study.run_folder import RunFolder as RunFiles
from smnas.search.study.settings import data_facts, other_data

__all__ = ["render_page", "render_report", "write_page", "write_report"]

_SAMPLE_SIDE = 900
_SHOWN_ROWS = 10
_NOTHING = "\N{EN DASH}"


def write_report(
    run_folder: Path, out: Path | None = None, *, images: CocoFolder | None = None, table: Path | None = None
) -> Path:
    """Write the report of a run folder.

    Sample detections and the winner's blocks need the data set and the latency table; without them the page says why
    they are missing.

    Args:
        run_folder: Output of ``smnas-search --out``; the search may still be running.
        out: File to write, atomically; ``run_folder/report.html`` by default.
        images: Data set; by default the search's, where it was last found.
        table: Latency table; by default the run folder's own.

    Returns:
        The written file.

    Raises:
        RunFolderError: ``run_folder`` is no run folder of this version.
        UserError: ``out`` cannot be written.
    """
    run = read_run_folder(run_folder)
    target = out or RunFiles(run_folder).report
    samples: tuple[Sample, ...] = ()
    blocks: tuple[data.BlockLatency, ...] = ()
    missing = []
    if run.winner is not None:
        try:
            samples = sample_detections(run, data=images)
        except UserError as error:
            missing.append(f"Sample detections are left out: {error}.")
        if samples and images is not None and (other := other_data(run.settings.data, data_facts(images, run.path))):
            missing.append(f"Sample detections are on {images.root}, not on the data set of the search: {other}.")
        try:
            blocks = blocks_of_run(run, run.winner.architecture, table)
        except UserError as error:
            missing.append(f"The latency of the recommended detector's parts is left out: {error}.")
    page = render_report(run, samples=samples, blocks=blocks, notes=missing)
    write_page(target, page)
    return target


def write_page(path: Path, page: str) -> None:
    """Write a page atomically; :class:`UserError` where the file can not be written."""
    try:
        write_atomic(path, page)
    except OSError as error:
        raise UserError(
            f"the report must be a file that can be written (--out names another), but got {path} ({error.strerror})"
        ) from None


def render_report(
    run: RunFolder,
    *,
    samples: Sequence[Sample] = (),
    blocks: Sequence[data.BlockLatency] = (),
    notes: Sequence[str] = (),
) -> str:
    """Render the page as text.

    Args:
        run: The run folder.
        samples: Images with drawn detections of the winner.
        blocks: Blocks of the winner with their latencies.
        notes: Added to the ranking's own.
    """
    fronts = data.fronts(run)
    growth = data.hypervolume_by_training(run)
    drawn = {}
    if fronts:
        drawn["front"] = figures.front_figure(fronts, run.baseline, run.winner)
    if growth is not None:
        drawn["hypervolume"] = figures.hypervolume_figure(growth)
    if lines := data.training_curves(run, "loss"):
        drawn["loss"] = figures.curves_figure(lines, "training loss", run)
    if lines := data.training_curves(run, "ap"):
        drawn["ap"] = figures.curves_figure(lines, "AP on the validation images", run)
    return render_page(
        "page.html",
        drawn,
        run=run,
        ranking=run.ranking,
        winner=run.winner,
        shown_rows=_SHOWN_ROWS,
        verdict=verdict(run.winner, run.baseline),
        fronts=fronts,
        growth=growth,
        families=data.families(run),
        scored=data.scored_candidates(run),
        controls=score_controls(run),
        importances=importances(run)[:_SHOWN_ROWS],
        failed=data.outcomes(run, "failed"),
        pruned=data.outcomes(run, "pruned"),
        running=data.outcomes(run, "running"),
        notes=(*run.ranking.notes, *notes),
        blocks=blocks,
        settings=data.settings_rows(run.settings.model_dump(mode="json")),
        samples=[(sample.caption, _data_uri(sample.image)) for sample in samples],
    )


def render_page(template: str, drawn: Mapping[str, go.Figure], **values: object) -> str:
    """Render a template of this folder with figures inside.

    Args:
        template: File of this folder that extends ``base.html``.
        drawn: Figures by the name of their place, ``data-figure``.
        values: Values for the template; text in them is escaped.
    """
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(
        arch=_architecture,
        breakable=_breakable,
        num=_number,
        count=_count,
        interval=lambda low, high: "" if low is None or high is None else f"{low:.2f} to {high:.2f}",
        measured=lambda fraction: "" if fraction is None else f", {fraction:.0%} of it measured",
        limits=band_limits,
        percent=lambda value: _NOTHING if value is None else f"{100 * value:+.0f} %",
        spread=lambda value: "" if (text := _number(value, 3)) == _NOTHING else f"\N{PLUS-MINUS SIGN}{text}",
    )
    return environment.get_template(template).render(
        **values,
        figures={name: _embedded_json(figure) for name, figure in drawn.items()},
        stylesheet=Markup((folder / "page.css").read_text(encoding="utf-8")),
        plotly_js=Markup(get_plotlyjs()) if drawn else "",
    )


def _embedded_json(figure: go.Figure) -> Markup:
    """A figure for ``<script type="application/json">``: a ``<`` inside could end the element early."""
    specification = figure.to_plotly_json()
    # The default template is 7 kB of unused colours; the page brings its own.
    specification["layout"].pop("template", None)
    text = json.dumps(specification, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _data_uri(image: Image.Image) -> str:
    smaller = image.convert("RGB")
    smaller.thumbnail((_SAMPLE_SIDE, _SAMPLE_SIDE))
    buffer = io.BytesIO()
    smaller.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _architecture(text: str) -> Markup:
    return Markup('<code class="arch">{}</code>').format(
        Markup("+<wbr>").join(escape(part) for part in text.split("+"))
    )


def _breakable(name: str) -> Markup:
    """A dotted name that may break after a dot or an underscore, so that a phone does not break it inside a word."""
    return escape(name).replace(".", Markup(".<wbr>")).replace("_", Markup("_<wbr>"))


def _number(value: float | None, digits: int) -> str:
    return _NOTHING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _count(value: float | None) -> str:
    if value is None:
        return _NOTHING
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"
