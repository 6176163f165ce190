"""The numbers behind the report, against literals and slow obvious references."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smnas.report import data
from smnas.report.page import render_report
from smnas.report.run_folder import Curve, RunFolder, read_run_folder
from smnas.search.ranking.ranking import Ranking, RankingRow
from smnas.search.study.candidate import Candidate
from smnas.search.study.settings import DataFacts, SearchSettings, StageTrials


def trial(number: int, ap: float | None, latency: float | None, stage: str = "structural", **values: Any) -> Candidate:
    """A trial whose architecture is any text: nothing here reads it."""
    known = {
        "architecture": f"a{number}",
        "state": "complete",
        "origin": "random",
        "parent": None,
        "seed": 0,
        "epochs": 4,
    }
    return Candidate(number=number, stage=stage, score=ap, latency_ms=latency, **(known | values))  # type: ignore[arg-type]


def run_of(*trials: Candidate, **values: Any) -> RunFolder:
    nothing = DataFacts(root="nowhere", classes=("x",), train_images=1, val_images=1)
    settings = SearchSettings(
        smnas="0",
        preset="nano",
        data=nothing,
        device="d",
        backend="b",
        precision="fp32",
        recipe={},
        epochs=1,
        scorer="s",
        trials=StageTrials(structural=1, modular=1),
    )
    return RunFolder(Path("nowhere"), settings, tuple(trials), **values)


def test_fronts_keep_stages_apart_and_sort_by_latency() -> None:
    run = run_of(
        trial(0, 0.2, 5.0, "baseline"),
        trial(1, 0.3, 9.0),
        trial(2, 0.1, 4.0),
        trial(3, 0.1, 6.0),
        trial(4, 0.9, 1.0, "modular"),
        trial(5, None, None, state="failed"),
    )
    fronts = data.fronts(run)
    assert list(fronts) == ["structural", "modular"]
    assert [(p.architecture, p.on_front) for p in fronts["structural"]] == [("a2", True), ("a3", False), ("a1", True)]
    assert len(fronts["modular"]) == 1


def test_seeds_of_one_architecture_become_mean_and_spread() -> None:
    run = run_of(*(trial(i, ap, 5.0, "final", architecture="x") for i, ap in enumerate((0.3, 0.36, 0.33))))
    ((point,),) = data.fronts(run).values()
    assert point.ap == pytest.approx(0.33)
    assert point.ap_std == pytest.approx(np.std([0.3, 0.36, 0.33], ddof=1))


def test_hypervolume_grows_to_the_area_counted_by_cells() -> None:
    trials = [trial(0, 0.2, 10.0, epochs=4), trial(1, 0.1, 4.0, epochs=4), trial(2, 0.05, 6.0, epochs=8)]
    growth = data.hypervolume_by_training(run_of(*trials))
    assert growth is not None
    assert growth.reference_latency_ms == pytest.approx(11.0)
    # By hand: 1 ms x 0.2, then 6 ms x 0.1 below it; the third point is dominated.
    assert growth.share == pytest.approx([0.2 / 11, (0.2 + 0.6) / 11, (0.2 + 0.6) / 11])
    assert growth.training_runs == (1, 2, 3)
    assert growth.epochs == (4, 8, 16)


def test_hypervolume_ignores_the_final_phase_and_unfinished_trials() -> None:
    run = run_of(trial(0, 0.2, 5.0), trial(1, 0.9, 1.0, "final"), trial(2, None, None, state="running"))
    growth = data.hypervolume_by_training(run)
    assert growth is not None
    assert len(growth.training_runs) == 1
    assert data.hypervolume_by_training(run_of()) is None


def test_families_tell_what_a_child_gained() -> None:
    run = run_of(
        trial(0, 0.2, 10.0, architecture="p"),
        trial(1, 0.25, 8.0, "modular", parent="p", architecture="c1"),
        trial(2, 0.30, 12.0, "modular", parent="p", architecture="c2"),
        trial(3, 0.10, 2.0, "modular", parent="unknown", architecture="c3"),
    )
    first, second = data.families(run)
    assert (first.parent, first.ap, first.latency_ms) == ("p", 0.2, 10.0)
    assert [c.architecture for c in first.children] == ["c2", "c1"]
    assert first.children[1].ap_gain == pytest.approx(0.05)
    assert first.children[1].latency_change == pytest.approx(-0.2)
    assert (second.ap, second.children[0].ap_gain) == (None, None)


def test_trainings_of_other_runs_are_on_the_front_and_have_children_and_cost_nothing() -> None:
    run = run_of(
        trial(0, 0.2, 10.0, "warm", architecture="p", epochs=4, start_epoch=4),
        trial(1, 0.3, 8.0, "modular", parent="p", epochs=4),
        trial(2, 0.1, 9.0, "structural", epochs=4),
    )
    assert list(data.fronts(run)) == ["warm", "structural", "modular"]
    (family,) = data.families(run)
    assert (family.parent, family.ap) == ("p", 0.2)
    assert family.children[0].ap_gain == pytest.approx(0.1)
    growth = data.hypervolume_by_training(run)
    assert growth is not None
    assert (growth.training_runs, growth.epochs) == ((1, 2, 3), (0, 4, 8))
    page = render_report(run)
    assert "1 from other runs" in page
    assert '"name":"other runs"' in page


def test_a_child_may_become_a_parent() -> None:
    run = run_of(
        trial(0, 0.2, 10.0, architecture="p"),
        trial(1, 0.25, 8.0, "modular", parent="p", architecture="c1"),
        trial(2, 0.30, 8.0, "modular", parent="c1", architecture="c2"),
    )
    assert [(f.parent, f.ap) for f in data.families(run)] == [("c1", 0.25), ("p", 0.2)]


def test_curves_are_the_longest_trainings_of_the_ranked() -> None:
    def curve(architecture: str, name: str, epochs: int) -> Curve:
        return Curve(architecture, name, tuple({"epoch": e + 1.0, "loss": 1.0 / (e + 1)} for e in range(epochs)))

    row = RankingRow(1, "x", "0", "candidate", "final", True, 0.3, None, (0.3,), None, (0,), 4, 5.0, None, None)
    run = run_of(
        curves=(curve("x", "seed-0-epochs-2", 2), curve("x", "seed-0-epochs-4", 4), curve("y", "seed-0-epochs-4", 4)),
        ranking=Ranking((row,), None),
    )
    (line,) = data.training_curves(run, "loss")
    assert (line.architecture, line.run) == ("x", "seed-0-epochs-4")
    assert line.epochs == (1.0, 2.0, 3.0, 4.0)
    assert line.values == (1.0, 1 / 2, 1 / 3, 1 / 4)
    assert data.training_curves(run, "ap") == ()
    assert len(data.training_curves(dataclasses.replace(run, ranking=Ranking((), None)), "loss")) == 2


def test_outcomes_carry_reasons() -> None:
    run = run_of(trial(3, None, None, state="failed", reason="out of memory"), trial(4, None, None, state="pruned"))
    assert [(o.number, o.reason) for o in data.outcomes(run, "failed")] == [(3, "out of memory")]
    assert [o.number for o in data.outcomes(run, "pruned")] == [4]


def test_settings_are_flattened_in_order() -> None:
    settings = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "f": False, "g": ()}
    rows = (("a", "1"), ("b.c", "1, 2"), ("b.d.e", "none"), ("f", "False"), ("g", "none"))
    assert data.settings_rows(settings) == rows


@pytest.mark.slow
def test_the_sample_run_reads_back(run_folder: Path) -> None:
    run = read_run_folder(run_folder)
    counts = {key: len(list(group)) for key, group in itertools.groupby(sorted(t.stage for t in run.trials))}
    assert counts == {"baseline": 1, "final": 6, "modular": 13, "structural": 13}
    assert list(data.fronts(run)) == ["structural", "modular", "final"]
    assert [len(f.children) for f in data.families(run)] == [6, 6]
    assert len(data.training_curves(run, "loss")) == 6
    evaluated = data.training_curves(run, "ap")
    assert len(evaluated) == 6
    assert all((line.epochs, line.values) == ((10, 20, 30, 40), (0.05, 0.1, 0.15, 0.2)) for line in evaluated)
    assert run.winner is not None
    assert run.winner.rank == 1
    assert run.baseline is not None
    assert run.baseline.architecture == "basicblock_16_11-21-21-21+fpn_2-6_64+rpn+rcnn_256+160x128"
