"""The parts of the winner, read from a latency table."""

from dataclasses import replace
from pathlib import Path

import pytest

from profiler.errors import UserError
from profiler.table.latency_table import LatencyTable, Row, Target
from smnas.latency.workloads import detector_workloads
from smnas.report.blocks import blocks_of_run
from smnas.report.page import write_report
from smnas.report.run_folder import read_run_folder
from smnas.space.architecture import Architecture

ARCHITECTURE = "basicblock_16_1-21-2+fpn_2-4_32+rpn+rcnn_128+160x128"
TARGET = Target("a processor", "onnxruntime", "1.32.0")


def fill(path: Path, target: Target, leave_out: str | None = None) -> dict[str, float]:
    """Give every part of the winner the latency of its place."""
    expected = {}
    with LatencyTable(path) as table:
        for number, part in enumerate(detector_workloads(Architecture.parse(ARCHITECTURE), 2), start=1):
            expected[part.name] = float(number)
            if part.name != leave_out and table.lookup(part.key, target) is None:
                ms = float(number)
                table.add(Row(part.key, part.name, target, median_ms=ms, low_ms=ms, high_ms=ms))
            elif part.name != leave_out:
                expected[part.name] = table.lookup(part.key, target).median_ms  # type: ignore[union-attr, assignment]
    return expected


@pytest.mark.slow
def test_every_part_in_the_order_in_which_they_run(run_folder: Path) -> None:
    expected = fill(run_folder / "latency.db", TARGET)
    fill(run_folder / "latency.db", replace(TARGET, device="another processor"))
    blocks = blocks_of_run(read_run_folder(run_folder), ARCHITECTURE)
    assert {block.name: block.latency_ms for block in blocks} == expected
    assert blocks[0].name == "backbone.stem"
    assert blocks[-1].name == "postprocess"
    page = write_report(run_folder).read_text(encoding="utf-8").replace("<wbr>", "")
    assert "Where the winner" in page
    assert all(f"<code>{name}</code>" in page for name in expected)


@pytest.mark.slow
def test_the_last_version_of_a_backend_counts(run_folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "elsewhere.db"
    fill(table, replace(TARGET, backend_version="1.30.0"), leave_out="postprocess")
    fill(table, TARGET)
    assert blocks_of_run(read_run_folder(run_folder), ARCHITECTURE, table)


@pytest.mark.slow
def test_what_is_missing_is_named(run_folder: Path, tmp_path: Path) -> None:
    run = read_run_folder(run_folder)
    with pytest.raises(UserError, match="no file"):
        blocks_of_run(run, ARCHITECTURE)
    fill(tmp_path / "lacking.db", TARGET, leave_out="postprocess")
    with pytest.raises(UserError, match=r"postprocess of .* has no latency"):
        blocks_of_run(run, ARCHITECTURE, tmp_path / "lacking.db")
    fill(tmp_path / "other.db", replace(TARGET, threads=2))
    with pytest.raises(UserError, match=r"other\.db has nothing of a processor"):
        blocks_of_run(run, ARCHITECTURE, tmp_path / "other.db")
