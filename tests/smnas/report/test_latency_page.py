"""The page of a latency table: its numbers, what it escapes, and that it fetches nothing."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from profiler.errors import UserError
from profiler.table.latency_table import LatencyTable, Row, Target
from profiler.work import Work
from smnas.latency.audit_file import read_audit, write_audit
from smnas.latency.workloads import detector_workloads
from smnas.report.latency_data import choose_target, read_view
from smnas.report.latency_page import write_latency_page
from smnas.space.architecture import Architecture

ARCH = "basicblock_8_1-2-2+fpn_2-4_24+norpn+retina_32_1+64x64"
TARGET = Target("Processor <script>alert(1)</script> & Co", "eager", "1")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "latency.db"
    with LatencyTable(path) as rows:
        for number, part in enumerate(
            {one.key: one for one in detector_workloads(Architecture.parse(ARCH), 3)}.values()
        ):
            ms = 0.1 * (number + 1)
            conditions = {"work": Work.of(part).as_dict(), "disturbances": ["load 9.0 on 2 cores"] if number else []}
            name = f"<b>{part.name}</b>" if number == 0 else part.name
            rows.add(Row(part.key, name, TARGET, median_ms=ms, low_ms=ms, high_ms=2 * ms, conditions=conditions))
        rows.add(Row("bad", "bad", TARGET, status="failed", reason="</script><img src=x>"))
        rounds = {"rounds": [{"median_ms": 1.25}, {"median_ms": 1.5}]}
        unsteady = Row("u", "<i>unsteady</i>", TARGET, "whole", median_ms=1.25, low_ms=1.0, high_ms=1.5)
        rows.add(replace(unsteady, stop_reason="rounds_disagree", conditions=rounds))
        rows.add(Row("old", "old", TARGET, median_ms=1.0, low_ms=1.0, high_ms=1.0))
        rows.add(Row("else", "else", Target("other", "eager", "1"), median_ms=1.0, low_ms=1.0, high_ms=1.0))
    return path


@pytest.mark.slow
def test_the_page_holds_the_table_and_fetches_nothing(table: Path, tmp_path: Path) -> None:
    detector = {"architecture": ARCH, "predicted_ms": 1.1, "low_ms": 1.0, "high_ms": 1.2, "measured_ms": 1.0}
    write_audit(table, TARGET, {"detectors": [detector]})
    out = tmp_path / "pages" / "latency.html"
    view = write_latency_page(table, out, architectures=[ARCH], classes=3)
    text = out.read_text(encoding="utf-8")
    plain, _, scripts = text.replace("<wbr>", "").partition('<script type="application/json"')
    assert view.target == TARGET
    assert (view.facts.blocks, view.facts.without_work) == (len(view.points) + 1, 1)
    assert "Processor &lt;script&gt;alert(1)&lt;/script&gt; &amp; Co" in plain
    assert "&lt;/script&gt;&lt;img src=x&gt;" in plain
    for raw in ("alert(1)</script>", "<img src=x>", "<b>backbone"):
        assert raw not in text
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", plain)
    assert set(re.findall(r'id="figure-(\w+)"', '<script type="application/json"' + scripts)) == {
        "blocks",
        "roofline",
        "audit",
    }
    blocks = detector_workloads(Architecture.parse(ARCH), 3)
    assert all(f"<code>{part.name}</code>" in plain for part in blocks)
    assert "mean error 10.0 %" in plain
    assert "<code>&lt;i&gt;unsteady&lt;/i&gt;</code>: 1.250, 1.500</li>" in plain


def test_no_block_is_above_the_roof(table: Path) -> None:
    with LatencyTable(table, read_only=True) as rows:
        view = read_view(rows, choose_target(rows))
    ratios = [point.latency_ms / point.bound_ms for point in view.points]
    assert min(ratios) == pytest.approx(1)  # the roof is read off the best of them
    assert view.facts.disturbed == len(view.points) - 1
    assert [name for name, _ in view.facts.failed] == ["bad"]


def test_audits_of_other_targets_stay(table: Path) -> None:
    other = Target("other", "eager", "1")
    row = {"architecture": "a", "predicted_ms": 1.0, "low_ms": 1.0, "high_ms": 1.0, "measured_ms": 2.0}
    write_audit(table, other, {"detectors": [row]})
    write_audit(table, TARGET, {"detectors": [row, row]})
    write_audit(table, TARGET, {"detectors": []})
    assert (len(read_audit(table, other)), len(read_audit(table, TARGET))) == (1, 0)
    table.with_name("latency.db.audit.json").write_text("half a fi")
    with pytest.raises(UserError, match="must be JSON"):
        read_audit(table, TARGET)
    assert json.dumps(row)


def test_what_can_not_be_drawn_is_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="with 80 classes must be in the table"):
        write_latency_page(table, tmp_path / "page.html", architectures=[ARCH])
    with LatencyTable(tmp_path / "empty.db"):
        pass
    with pytest.raises(UserError, match="holds none"):
        write_latency_page(tmp_path / "empty.db", tmp_path / "page.html")


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_the_table_without_errors_requests_and_sideways_scrolling(
    table: Path, tmp_path: Path, browse: Callable[[Path, int], Any], width: int
) -> None:
    detector = {"architecture": ARCH, "predicted_ms": 1.1, "low_ms": 1.0, "high_ms": 1.2, "measured_ms": 1.0}
    write_audit(table, TARGET, {"detectors": [detector]})
    write_latency_page(table, tmp_path / "latency.html", architectures=[ARCH], classes=3)
    seen = browse(tmp_path / "latency.html", width)
    assert seen.drawings >= 3
    assert max(seen.scroll_width, seen.right_edge) <= width
    assert (seen.requests, seen.console) == (0, [])
