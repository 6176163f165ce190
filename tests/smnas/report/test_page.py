"""The page as a reader meets it: without a network, without JavaScript, on a phone, in a real browser."""

import base64
import html.parser
import io
import json
import re
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scipy.stats import kendalltau

from profiler.errors import UserError
from smnas.report.controls import score_controls
from smnas.report.data import BlockLatency
from smnas.report.page import render_report, write_report
from smnas.report.run_folder import read_run_folder
from smnas.report.samples import Sample

Browse = Callable[[Path, int], Any]


class Reader(html.parser.HTMLParser):
    """What a browser without JavaScript shows, and every address that the page would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.scripts: dict[str, str] = {}
        self._silent: str | None = None
        self._script_id = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.addresses += [attributes[key] or "" for key in ("src", "href", "srcset", "poster") if key in attributes]
        if tag in ("script", "style"):
            self._silent = tag
            self._script_id = attributes.get("id") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag == self._silent:
            self._silent = None

    def handle_data(self, data: str) -> None:
        if self._silent is None:
            self.text.append(data)
        elif self._script_id:
            self.scripts[self._script_id] = self.scripts.get(self._script_id, "") + data

    @property
    def visible(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.text))


@pytest.fixture
def page(run_folder: Path) -> Reader:
    samples = [Sample("fish & chips.jpg", Image.new("RGB", (1200, 800), "teal"))]
    blocks = [BlockLatency("backbone.stem", 1.5), BlockLatency("head.box", 4.5)]
    text = render_report(read_run_folder(run_folder), samples=samples, blocks=blocks, notes=["One more note."])
    (run_folder / "report.html").write_text(text, encoding="utf-8")
    return Reader(text)


@pytest.mark.slow
def test_the_numbers_are_readable_without_javascript(page: Reader) -> None:
    assert "The recommended detector is faster than the baseline, and its AP is better." in page.visible
    assert "43% faster than the baseline (7.12 against 12.40 ms, measured)" in page.visible
    assert "basicblock_16_1-21-2+fpn_2-4_32+rpn+rcnn_128+160x128" in page.visible
    assert "loss became NaN <at step 7>" in page.visible
    assert "over the latency limit" in page.visible
    assert "fish <of> the sea" in page.visible
    assert "The smallest boxes of the data are 9 pixels wide." in page.visible
    assert "One more note." in page.visible
    assert "75 %" in page.visible
    assert "recipe.learning_rate0.02" in page.visible
    assert "need JavaScript" in page.visible


@pytest.mark.slow
def test_nothing_is_fetched_from_anywhere(page: Reader, run_folder: Path) -> None:
    assert page.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    text = (run_folder / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(\s*['\"]?http", text.split("<script", maxsplit=1)[0])


@pytest.mark.slow
def test_plotly_is_inlined_once(page: Reader, run_folder: Path) -> None:
    text = (run_folder / "report.html").read_text(encoding="utf-8")
    assert text.count("plotly.js v") == 1
    assert len(text) < 6_000_000


@pytest.mark.slow
def test_the_figures_hold_the_points_of_the_tables(page: Reader) -> None:
    front = json.loads(page.scripts["figure-front"])
    by_name = {trace["name"]: trace for trace in front["data"] if "name" in trace}
    assert set(by_name) == {"stage 1", "stage 2", "ranked", "baseline", "recommended"}
    assert by_name["recommended"]["x"] == [7.0]
    assert by_name["recommended"]["y"] == [0.34]
    assert len(by_name["stage 1"]["x"]) == 12
    assert set(page.scripts) == {"figure-front", "figure-hypervolume", "figure-loss", "figure-ap"}


@pytest.mark.slow
def test_points_have_error_bars_both_ways(page: Reader, run_folder: Path) -> None:
    traces = {trace.get("name"): trace for trace in json.loads(page.scripts["figure-front"])["data"]}
    ranked, first = traces["ranked"], traces["stage 1"]
    # The sample run's intervals are 0.94 to 1.07 times the latency.
    for trace in (ranked, first):
        assert trace["error_x"]["array"] == pytest.approx([0.07 * x for x in trace["x"]])
        assert trace["error_x"]["arrayminus"] == pytest.approx([0.06 * x for x in trace["x"]])
    finals: dict[str, list[float]] = {}
    for trial in read_run_folder(run_folder).trials:
        if trial.stage == "final" and trial.score is not None:
            finals.setdefault(str(trial.architecture), []).append(trial.score)
    spreads = {round(statistics.mean(aps), 9): statistics.stdev(aps) for aps in finals.values()}
    assert ranked["error_y"]["visible"] is True
    assert ranked["error_y"]["array"] == pytest.approx([spreads[round(y, 9)] for y in ranked["y"]])
    assert min(ranked["error_y"]["array"]) > 0
    assert first["error_y"]["visible"] is False, "one seed has no spread"


@pytest.mark.slow
def test_images_are_embedded_small_enough_for_a_page(page: Reader) -> None:
    image = Image.open(io.BytesIO(base64.b64decode(page.addresses[0].split(",", 1)[1])))
    assert image.format == "JPEG"
    assert max(image.size) == 900


@pytest.mark.slow
def test_a_search_that_just_began_has_a_page(run_folder: Path, tmp_path: Path) -> None:
    for path in (run_folder / "study.db", run_folder / "ranking.json"):
        path.unlink()
    shutil.rmtree(run_folder / "models")
    out = write_report(run_folder, tmp_path / "page.html")
    reader = Reader(out.read_text(encoding="utf-8"))
    assert "No recommendation yet" in reader.visible
    assert not reader.scripts
    assert out.stat().st_size < 50_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "run"]


@pytest.mark.slow
def test_what_is_not_there_any_more_is_said(run_folder: Path) -> None:
    visible = Reader(write_report(run_folder).read_text(encoding="utf-8")).visible
    assert "Sample detections are left out" in visible
    assert "parts is left out: a latency table must exist" in visible


@pytest.mark.slow
def test_scores_without_training_are_not_shown_as_ap(run_folder: Path) -> None:
    settings = json.loads((run_folder / "settings.json").read_text())
    for name in ("metric", "trains"):  # earlier versions did not write them
        del settings[name]
    (run_folder / "settings.json").write_text(json.dumps(settings | {"scorer": "entropy"}))
    run = read_run_folder(run_folder)
    assert {trial.stage for trial in run.trials if trial.score is not None and trial.metric == "AP"} == {"final"}
    assert sum(trial.score is not None and trial.metric == "entropy" for trial in run.trials) == 25
    text = render_report(run)
    reader = Reader(text)
    assert "Candidates by entropy" in reader.visible
    assert "What the score is worth here" in reader.visible
    assert "detectors of 40 epochs" in reader.visible
    front = json.loads(reader.scripts["figure-front"])
    assert {trace["name"] for trace in front["data"] if "name" in trace} == {"ranked", "baseline", "recommended"}
    assert "figure-hypervolume" not in reader.scripts
    # highest first, the finally trained ones with the mean of their APs
    table = text[text.index('id="scored"') : text.index("</table>", text.index('id="scored"'))]
    scores = [float(cell) for cell in re.findall(r'data-label="Score">([^<]+)', table)]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 25
    aps = re.findall(r'data-label="AP">([^<]+)', table)
    assert sorted(cell for cell in aps if cell[0].isdigit()) == ["0.305", "0.312", "0.340"]


@pytest.mark.slow
def test_a_prior_is_held_against_its_controls(run_folder: Path) -> None:
    assert "What the score is worth here" not in Reader(render_report(read_run_folder(run_folder))).visible
    settings = json.loads((run_folder / "settings.json").read_text())
    (run_folder / "settings.json").write_text(json.dumps(settings | {"prior": "entropy-16"}))
    run = read_run_folder(run_folder)
    controls = score_controls(run)
    assert controls is not None
    assert (controls.score, controls.epochs) == ("entropy-16", 4)
    whole = controls.groups[0]
    assert whole.detectors == 25, "all that were trained with the search's budget"
    trained = [t for t in run.trials if t.stage != "final" and t.score is not None]
    speed = next(row for row in whole.rows if row.name == "negative latency")
    assert speed.tau == pytest.approx(
        kendalltau([-t.latency_ms for t in trained], [t.score for t in trained]).statistic
    )  # type: ignore[operator]
    stopped = tuple(replace(t, stop_epoch=1) if t is trained[0] else t for t in run.trials)
    controls = score_controls(replace(run, trials=stopped))
    assert controls is not None
    assert controls.groups[0].detectors == 24, "what was stopped on the way has the AP of fewer epochs"
    visible = Reader(render_report(run)).visible
    assert "entropy-16" in visible
    assert "detectors of 4 epochs" in visible


@pytest.mark.slow
def test_a_page_that_can_not_be_written_is_the_users_mistake(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can be written"):
        write_report(run_folder, tmp_path / "file" / "report.html")


@pytest.mark.slow
def test_a_slower_winner_is_said_plainly(run_folder: Path) -> None:
    file = run_folder / "ranking.json"
    document = json.loads(file.read_text())
    for row in document["rows"]:
        if row["role"] == "baseline":
            row.update(measured_latency_ms=3.0, measured_latency_low_ms=2.9, measured_latency_high_ms=3.1)
    file.write_text(json.dumps(document))
    text = write_report(run_folder).read_text(encoding="utf-8")
    assert "The recommended detector is slower than the baseline, but its AP is better." in Reader(text).visible
    assert 'class="verdict no"' in text


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_it_without_errors_requests_and_sideways_scrolling(
    page: Reader, run_folder: Path, browse: Browse, width: int
) -> None:
    seen = browse(run_folder / "report.html", width)
    assert seen.drawings >= 3
    assert max(seen.scroll_width, seen.right_edge) <= width
    assert (seen.requests, seen.console) == (0, [])
