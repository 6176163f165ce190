"""``smnas search`` end to end on a handful of images, and how it shows what is going on."""

import io
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from profiler.timing.measurement import TimingSettings
from smnas import api
from smnas.cli import search
from smnas.cli.main import application
from smnas.cli.terminal.console import Output
from smnas.cli.terminal.exit_codes import run
from smnas.cli.terminal.search_display import SearchDisplay, show_ranking, trial_line
from smnas.data.shapes import generate_shapes
from smnas.deploy import ranked
from smnas.evaluation.predict import evaluate
from smnas.scoring import trained_ap
from smnas.search.progress import SearchEvent
from smnas.search.ranking.ranking import read_ranking
from smnas.search.strategies.mae_det import zero_shot

_QUICK = TimingSettings(relative_half_width=0.5, min_samples=3, max_samples=5, time_limit_s=0.2, warmup_s=0.0)
EVENT = SearchEvent(
    number=3,
    stage="structural",
    state="complete",
    architecture="a+b",
    trained=2,
    total=21,
    metric="AP",
    score=0.25,
    latency_ms=1.5,
    best_score=0.5,
    best_architecture="c+d",
    front=((0.25, 1.5), (0.5, 4.25)),
    seconds_left=185.0,
    reason=None,
)


def _search(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(application("search"), "smnas-search", list(map(str, words)))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _more(*given: Any, **named: Any) -> Any:
    found = evaluate(*given, **named)
    return replace(found, ap=found.ap + 0.1)


@pytest.mark.slow
def test_the_whole_chain_resumes_and_gives_files_that_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = generate_shapes(tmp_path / "data", train=8, val=3), tmp_path / "run"
    monkeypatch.setattr(api, "search", partial(api.search, timing=_QUICK, calibration=0))
    for module in (trained_ap, ranked):  # an epoch on eight images leaves AP at 0, and such a detector unrecommended
        monkeypatch.setattr(module, "evaluate", _more)
    words = (
        "--data",
        data,
        "--gpu",
        "cpu",
        "--backend",
        "eager",
        "--trials",
        "1,0",
        "--epochs",
        1,
        "--final-epochs",
        0,
        "--top",
        1,
        "--workers",
        1,
    )
    code, text, log = _search(capsys, *words, "--out", out, "--json")
    assert code == 0, log
    document = json.loads(text)
    assert {row["role"] for row in document["ranking"]} == {"baseline", "candidate"}
    assert document["recommendation"]["architecture"] == document["ranking"][0]["architecture"]
    assert "1/2 baseline" in log
    assert re.search(r"2/2 joint +AP", log)
    for name in ("settings.json", "study.db", "latency.db", "ranking.json", "ranking.csv", "report.html"):
        assert (out / name).is_file(), name
    winner = document["ranking"][0]
    assert winner["model"] is not None, document["notes"]
    assert (out / winner["model"]).is_file()
    assert (out / winner["checkpoint"]).is_file()
    assert winner["exported_ap"] == pytest.approx(winner["ap"], abs=1e-3)
    assert winner["measured_latency_low_ms"] <= winner["measured_latency_ms"] <= winner["measured_latency_high_ms"]

    code, text, log = _search(capsys, *words, "--out", out)
    assert code == 0, log
    assert f"resuming {out}" in log
    assert not re.search(r"2/2 joint +AP", log)  # nothing is trained again
    assert winner["architecture"] in text
    assert str(out / "report.html") in text

    (out / winner["checkpoint"]).with_name("curve.jsonl").write_bytes(b"\xff\x00")  # as a lost disk may leave it
    assert run(application("report"), "smnas-report", [str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'report.html'}\n"
    for option, wrong in (("--data", "nowhere"), ("--table", "no.db"), ("--table", str(out / "ranking.csv"))):
        assert run(application("report"), "smnas-report", [str(out), option, wrong]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert wrong in captured.err

    code, text, log = _search(capsys, *words, "--seed", 9, "--out", out)
    assert (code, text) == (2, "")
    assert "seed" in log
    assert len(log.splitlines()) == 1

    image = next((data / "val").iterdir())
    detect = ["--model", str(out), "--score", "0", "--out", str(tmp_path / "drawn"), "--json", str(image)]
    assert run(application("detect"), "smnas-detect", detect) == 0
    (found,) = json.loads(capsys.readouterr().out)["images"]
    assert found["error"] is None
    assert Path(found["drawn"]).is_file()
    assert all(0 <= one["box"][0] < one["box"][2] <= found["width"] for one in found["detections"])


@pytest.mark.slow
def test_a_search_by_entropy_ends_as_any_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = generate_shapes(tmp_path / "data", train=8, val=3), tmp_path / "run"
    monkeypatch.setattr(api, "search", partial(api.search, timing=_QUICK, calibration=0))
    for name, value in (("_CALIBRATION", 1), ("_CHECKED", 1), ("_STEPS", 200)):
        monkeypatch.setattr(zero_shot, name, value)
    # exporting takes long, and is the same for every search
    monkeypatch.setattr(ranked, "deploy_ranking", lambda folder, *_, **__: ranked.DeployReport(read_ranking(folder)))
    words = ("--data", data, "--gpu", "cpu", "--backend", "eager", "--trials", "2,0", "--workers", 1, "--out", out)
    words += ("--scorer", "entropy", "--final-epochs", 1, "--top", 1, "--latency-ms", 500)
    code, text, log = _search(capsys, *words, "--json")
    assert code == 0, log
    document = json.loads(text)
    assert "3/5 modular" in log
    candidate = next(row for row in document["ranking"] if row["role"] == "candidate")
    assert candidate["architecture"].startswith("k1kxk1_")
    assert candidate["stage"] == "final"
    assert 0 <= candidate["ap"] <= 1
    assert (out / candidate["checkpoint"]).is_file()
    found = json.loads((out / "zero-shot.json").read_text())
    assert candidate["architecture"] in {listed["architecture"] for listed in found["candidates"]}
    page = (out / "report.html").read_text()
    assert "Candidates by entropy" in page
    assert "What the score is worth here" in page


@pytest.mark.parametrize(("text", "counts"), [("20,10", (20, 10)), ("1,0", (1, 0))])
def test_trials(text: str, counts: tuple[int, int]) -> None:
    assert search._trial_counts(text) == counts


def test_a_line_for_every_finished_trial() -> None:
    pruned = replace(EVENT, state="pruned", score=None, reason="already beaten")
    failed = replace(EVENT, state="failed", score=None, latency_ms=None, reason="diverged", seconds_left=None)
    lines = [" ".join(trial_line(event).split()) for event in (EVENT, pruned, failed)]
    assert lines == [
        "2/21 structural AP 0.250 1.50 ms a+b (front 2, best AP 0.500, 3m05s left)",
        "2/21 structural pruned 1.50 ms a+b (already beaten)",
        "2/21 structural failed a+b (diverged)",
    ]


def test_the_front_is_told_when_it_changes() -> None:
    messages = io.StringIO()
    with SearchDisplay(Output(io.StringIO(), messages, as_json=False, quiet=False)) as display:
        for event in (EVENT, EVENT, replace(EVENT, front=((0.5, 1.0),)), replace(EVENT, stage="final", front=())):
            display.on_event(event)
    told = [line for line in messages.getvalue().splitlines() if line.startswith("front")]
    assert told == [
        "front so far, AP: 0.250 at 1.50 ms, 0.500 at 4.25 ms",
        "front so far, AP: 0.500 at 1.00 ms",
    ]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [False, True])
def test_a_training_that_begins_is_shown_on_a_terminal_only(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    messages = _Terminal() if terminal else io.StringIO()
    output = Output(io.StringIO(), messages, as_json=False, quiet=False)
    with SearchDisplay(output) as display:
        display.on_event(replace(EVENT, state="running", score=None, architecture="running+one"))
        display.on_event(EVENT)
    text = messages.getvalue()
    assert "2/21 structural" in text
    assert ("running+one" in text) == terminal


def test_the_ranking_names_the_recommended_detector_and_why(tmp_path: Path) -> None:
    row = {
        "rank": 1, "architecture": "a+b", "id": "0", "role": "baseline", "stage": "final", "on_front": True, "ap": 0.5,
        "ap_std": None, "ap_per_seed": [0.5], "ap50": 0.7, "seeds": [0], "epochs": 3, "predicted_latency_ms": 2.0,
        "predicted_latency_low_ms": 1.0, "predicted_latency_high_ms": 3.0,
    }  # fmt: skip
    document = {
        "format_version": 1,
        "rows": [row],
        "recommendation": {"architecture": "a+b", "reason": "because"},
        "notes": ["mind this"],
    }
    (tmp_path / "ranking.json").write_text(json.dumps(document))
    results = io.StringIO()
    output = Output(results, io.StringIO(), as_json=False, quiet=False)
    output.result({}, lambda console: show_ranking(console, read_ranking(tmp_path)))
    text = results.getvalue()
    assert "front baseline" in text
    assert "recommended: a+b\nbecause\nnote: mind this\n" in text
