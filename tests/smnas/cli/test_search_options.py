"""``smnas search``'s limits and storage on the command line."""

import json
from functools import partial
from pathlib import Path

import pytest

from profiler.prediction.predict import Latency
from profiler.table.latency_table import LatencyTable
from profiler.timing.measurement import TimingSettings
from smnas import api
from smnas.cli.main import application
from smnas.cli.terminal.exit_codes import run
from smnas.data.shapes import generate_shapes
from smnas.search.context import SearchContext
from smnas.search.ranking.ranking import Ranking, RankingRow, write_ranking
from smnas.search.ranking.recommendation import Recommendation
from smnas.search.study.settings import read_settings
from smnas.space.preset import load_space

_QUICK = TimingSettings(relative_half_width=0.5, min_samples=3, max_samples=5, time_limit_s=0.2, warmup_s=0.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "8x"), "a time is written as in 90s"),
        (("--storage", "postgresql://me:secret@host/db"), "must not hold a password"),
        (("--storage", "nothing"), "a storage is a database URL"),
        (("--precision", "fp16"), "onnxruntime on"),
        (("--threads", "1,2"), "a search has one number of threads, so each needs a search of its own, but got '1,2'"),
        (("--threads", "0"), "--threads must be an integer of at least 1, but got '0'"),
        pytest.param(
            ("--max-parameters", "10"),
            "--max-parameters must allow a detector of nano, of which the smallest found has",
            marks=pytest.mark.slow,
        ),
        (("--precision", "bf16", "--backend", "eager"), "must be one of fp32, fp16, int8, but got 'bf16'"),
    ],
)
def test_mistakes_leave_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "run"
    code = run(application("search"), "smnas-search", [*words, "--gpu", "cpu", "--out", str(out)])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert "secret" not in error
    assert len(error.strip().splitlines()) == 1
    assert not out.exists()


def test_a_search_without_a_detector_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranking = Ranking((), None, notes=("The baseline failed and is not in the ranking: diverged",))
    ended = api.SearchRun(tmp_path / "run")
    vars(ended)["ranking"] = ranking
    monkeypatch.setattr(api, "search", lambda **_: ended)
    assert run(application("search"), "smnas-search", ["--out", str(tmp_path / "run"), "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["notes"] == list(ranking.notes), "what there is is told all the same"
    assert "nothing has an AP" in captured.err.splitlines()[-1]


@pytest.mark.slow
def test_a_search_in_int8_measures_in_int8_and_is_resumed_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = load_space("nano").structures[0]
    predicted: list[Latency] = []

    def search_nothing(context: SearchContext, **_: object) -> None:
        assert context.latency is not None
        predicted.append(context.latency(small))
        write_ranking(context.folder, context.settings, ranking)

    row = RankingRow(1, str(small), "0", "baseline", "final", True, 0.1, None, (0.1,), None, (0,), 1, 1.0, None, None)
    ranking = Ranking((row,), Recommendation(row.architecture, "it is there"))
    monkeypatch.setattr("smnas.search.run.run_search", search_nothing)
    monkeypatch.setattr("smnas.latency.profiling.calibration_set", lambda *_: [small])
    monkeypatch.setattr(api, "search", partial(api.search, timing=_QUICK, deploy=False))
    data, out = generate_shapes(tmp_path / "data", train=1, val=1), tmp_path / "run"
    words = ["--data", str(data), "--gpu", "cpu", "--workers", "1", "--out", str(out)]
    assert run(application("search"), "smnas-search", [*words, "--precision", "int8"]) == 0
    with LatencyTable(out / "latency.db", read_only=True) as table:
        (target,) = table.targets()
        whole = [row for row in table.current(target).values() if row.kind == "whole"]
    assert target.precision == "int8"
    assert len(whole) == 1
    assert read_settings(out).precision == "int8"
    assert predicted[0].ms > 0
    capsys.readouterr()
    assert run(application("search"), "smnas-search", words) == 2
    assert "precision = 'int8'" in capsys.readouterr().err
