"""What goes to standard output and what to standard error; JSON; time left."""

import io
import json
import math
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from smnas.cli.terminal import progress
from smnas.cli.terminal.console import Output, plain, show_facts, show_table
from smnas.cli.terminal.progress import PhaseSteps
from smnas.durations import duration


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Point:
    x: float
    path: Path


def _output(*, as_json: bool = False, quiet: bool = False) -> tuple[Output, io.StringIO, io.StringIO]:
    results, messages = io.StringIO(), io.StringIO()
    return Output(results, messages, as_json=as_json, quiet=quiet), results, messages


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Point(math.nan, Path("a/b")), {"x": None, "path": "a/b"}),
        ({"n": np.int64(3), 4: (1, 2)}, {"n": 3, "4": [1, 2]}),
        (np.array([[0.5, np.inf]]), [[0.5, None]]),
        (np.float32(0.5), 0.5),
        (Colour.RED, "red"),
        ([True, None, -math.inf], [True, None, None]),
    ],
)
def test_plain_gives_what_json_can_hold(value: object, expected: object) -> None:
    assert plain(value) == expected
    json.dumps(plain(value), allow_nan=False)


def test_json_is_one_document_and_everything_else_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Output.open(as_json=True, quiet=False) as output:
        sys.stdout.write("a library prints\n")
        output.note("working")
        output.result({"ap": math.nan}, lambda console: pytest.fail("not for people"))
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"ap": None}
    assert "a library prints" in captured.err
    assert "working" in captured.err


def test_quiet_leaves_the_result_only() -> None:
    output, results, messages = _output(quiet=True)
    output.note("working")
    with PhaseSteps(output) as steps:
        steps.step("training", 1, 2)
    output.result({}, lambda console: console.print("done"))
    assert results.getvalue() == "done\n"
    assert messages.getvalue() == ""


def test_a_pipe_never_cuts_an_architecture() -> None:
    output, results, _ = _output()
    long = "bottleneck_64_" + "1" * 120 + "+fpn_2-6_256+rpn+cascade_3_1024+1333x800"
    output.result({}, lambda console: show_table(console, ["architecture", "AP"], [[long, 0.51234]]))
    assert long in results.getvalue()
    assert "0.512" in results.getvalue()


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_a_narrow_terminal_breaks_no_number_and_no_architecture(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    results = io.StringIO()
    monkeypatch.setattr(results, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "dumb")
    long = "basicblock_16_11-21-21-21+fpn_2-5_64+rpn+rcnn_256+128x128"
    rows = [[1, 0.51234, 1_783_149, "front baseline", long], [2, None, 60_162, "", "short"]]
    output = Output(results, io.StringIO(), as_json=False, quiet=False)
    output.result({}, lambda console: show_table(console, ["rank", "AP", "parameters", "", "architecture"], rows))
    words = [word for word in results.getvalue().split() if set(word) != {"\N{BOX DRAWINGS LIGHT HORIZONTAL}"}]
    wanted = f"rank AP parameters architecture 1 0.512 1,783,149 front baseline {long} 2 - 60,162 short"
    assert words == wanted.split()
    lines = results.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines if long not in line) <= max(width, 40)


def test_table_and_facts_show_what_is_not_known_as_a_dash() -> None:
    output, results, _ = _output()
    output.result({}, lambda console: show_facts(console, [("ap", math.nan), ("n", 12345), ("front", True)]))
    assert [line.split() for line in results.getvalue().splitlines()] == [
        ["ap", "-"],
        ["n", "12,345"],
        ["front", "yes"],
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (7800, "2h10m"), (-3, "0s")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_time_left_counts_only_what_this_run_did(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0, 130.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    output, _, messages = _output()
    with PhaseSteps(output) as steps:
        steps.step("training", 80, 100)  # an earlier run did 80; nothing is known of the speed yet
        steps.step("training", 81, 100)  # 10 s after the first line: too soon for another one
        steps.step("training", 83, 100, "model b")  # 30 s for 3 steps, 17 to go
    assert messages.getvalue().splitlines() == ["training 80/100", "training 83/100  2m50s left  model b"]


def test_a_file_name_in_square_brackets_is_no_style(monkeypatch: pytest.MonkeyPatch) -> None:
    output, _, messages = _output()
    output.messages = Console(file=messages, force_terminal=True, width=200)
    with PhaseSteps(output) as steps:
        steps.step("frames of [/b].mp4", 1, 2, "[/red].jpg")
    assert "frames of [/b].mp4" in messages.getvalue()
    assert "[/red].jpg" in messages.getvalue()
