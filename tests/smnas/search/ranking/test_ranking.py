"""The ranking: its rows, its rule, its sentence, its files."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import search_stub as stub

from smnas.search.ranking.notes import search_notes
from smnas.search.ranking.ranking import Ranking, complete_ranking, rank, read_ranking, write_ranking
from smnas.search.ranking.recommendation import band_limits, band_recommendations, recommend
from smnas.search.ranking.row import RankingRow
from smnas.search.study.candidate import Candidate
from smnas.search.study.settings import DataFacts, RunFolderError, SearchSettings, StageTrials
from smnas.space.preset import load_space

NANO = load_space("nano")


def name(index: int) -> str:
    return str(NANO.structures[index])


def trial(number: int, index: int, ap: float, latency: float, stage: str = "structural", seed: int = 0) -> Candidate:
    final = stage == "final"
    return Candidate(
        number=number,
        architecture=NANO.structures[index],
        stage=stage,  # type: ignore[arg-type]
        origin="random",
        parent=None,
        state="complete",
        seed=seed,
        epochs=12 if final else 3,
        latency_ms=latency,
        latency_low_ms=0.98 * latency,
        latency_high_ms=1.02 * latency,
        parameters=1000 + index,
        flops=2000 + index,
        score=ap,
        metrics={"ap": ap, "ap50": 1.5 * ap, "ap_large": math.nan},
        seconds=1.0,
        checkpoint=f"models/{name(index)}/seed-{seed}-epochs-{12 if final else 3}/checkpoint.pt",
    )


SEARCH = [
    trial(0, 0, 0.30, 10.0, "baseline"),
    trial(1, 1, 0.20, 4.0),
    trial(2, 2, 0.35, 9.0),
    trial(3, 3, 0.50, 20.0, "modular"),
    trial(4, 4, 0.34, 9.5, "modular"),  # second layer
    trial(5, 5, 0.10, 30.0),  # far behind
    replace(trial(6, 6, 0.9, 1.0), state="failed", score=None, reason="diverged"),
    replace(trial(7, 7, 0.9, 1.0), state="pruned", score=None, reason="over the latency limit"),
]
FINAL = [
    trial(8, 0, 0.40, 10.0, "final", 0),
    trial(9, 2, 0.46, 9.0, "final", 0),
    trial(10, 0, 0.42, 10.0, "final", 1),
    trial(11, 2, 0.44, 9.0, "final", 1),
    trial(12, 3, 0.60, 20.0, "final", 0),
]


def settings(**changes: object) -> SearchSettings:
    return SearchSettings(
        smnas="0.1.0",
        preset="nano",
        data=DataFacts(root="shapes", classes=("disc",), train_images=10, val_images=5),
        device="cpu",
        backend="onnxruntime",
        precision="fp32",
        recipe={},
        epochs=3,
        scorer="ap",
        trials=StageTrials(structural=3, modular=2),
        **changes,  # type: ignore[arg-type]
    )


def by_name(ranking: Ranking) -> dict[str, RankingRow]:
    return {row.architecture: row for row in ranking.rows}


def test_the_searchs_ranking_without_a_final_phase() -> None:
    ranking = rank(SEARCH, None)
    assert [row.architecture for row in ranking.rows] == [name(i) for i in (2, 4, 0, 1, 3)]
    assert [row.rank for row in ranking.rows] == [1, 2, 3, 4, 5]
    rows = by_name(ranking)
    assert [rows[name(i)].on_front for i in (1, 2, 3, 4, 0)] == [True, True, True, False, False]
    assert [row.role for row in ranking.rows] == ["candidate", "candidate", "baseline", "candidate", "candidate"]
    best = ranking.rows[0]
    assert (best.ap, best.ap_std, best.ap_per_seed, best.seeds, best.epochs) == (0.35, None, (0.35,), (0,), 3)
    assert best.ap50 == pytest.approx(0.525)
    assert (best.parameters, best.flops, best.id) == (1002, 2002, NANO.structures[2].id)
    assert name(5) not in rows, "four layers behind the front"
    assert not {name(6), name(7)} & set(rows), "neither failed nor pruned"


def test_final_trainings_rank_first_by_their_mean() -> None:
    ranking = rank(SEARCH + FINAL, None)
    assert [(row.architecture, row.stage) for row in ranking.rows[:3]] == [
        (name(2), "final"),
        (name(0), "final"),
        (name(3), "final"),  # the best AP, but slower than the baseline
    ]
    best = ranking.rows[0]
    assert best.ap == pytest.approx(0.45)
    assert best.ap_std == pytest.approx(0.02 / math.sqrt(2))
    assert best.ap_per_seed == (0.46, 0.44)
    assert best.seeds == (0, 1)
    assert best.epochs == 12
    assert best.checkpoint == f"models/{name(2)}/seed-0-epochs-12/checkpoint.pt"
    assert by_name(ranking)[name(0)].checkpoint == f"models/{name(0)}/seed-1-epochs-12/checkpoint.pt"
    assert by_name(ranking)[name(3)].ap_std is None
    assert sum(row.architecture == name(2) for row in ranking.rows) == 1


def test_nothing_trained_ranks_nothing() -> None:
    assert rank([], None, ["a note"]) == Ranking((), None, notes=("a note",))
    assert rank(SEARCH[6:], 5.0).recommendation is None


@pytest.mark.parametrize(
    ("candidates", "limit", "winner", "reason"),
    [
        (
            SEARCH,
            None,
            2,
            "AP 0.350 (1 seed, 3 epochs) at 9.00 ms (predicted): the best AP among the 4 detectors not slower "
            "than the baseline. It is 10% faster than the baseline (9.00 against 10.00 ms, predicted); its AP "
            "is better by 0.050 (0.350 against 0.300).",
        ),
        (
            SEARCH + FINAL,
            None,
            2,
            "AP 0.450 ± 0.014 (2 seeds, 12 epochs) at 9.00 ms (predicted): the best AP among the 2 detectors "
            "not slower than the baseline. It is 10% faster than the baseline (9.00 against 10.00 ms, "
            "predicted); its AP is better by 0.040 (0.450 against 0.410).",
        ),
        (
            SEARCH,
            5.0,
            1,
            "AP 0.200 (1 seed, 3 epochs) at 4.00 ms (predicted): the only detector within 5 ms. It is 60% "
            "faster than the baseline (4.00 against 10.00 ms, predicted); its AP is worse by 0.100 (0.200 "
            "against 0.300).",
        ),
        (
            SEARCH,
            25.0,
            3,
            "AP 0.500 (1 seed, 3 epochs) at 20.00 ms (predicted): the best AP among the 5 detectors within 25 "
            "ms. It is 100% slower than the baseline (20.00 against 10.00 ms, predicted); its AP is better by "
            "0.200 (0.500 against 0.300).",
        ),
        (
            SEARCH[:1],
            None,
            0,
            "AP 0.300 (1 seed, 3 epochs) at 10.00 ms (predicted): nothing else is as fast. It is the baseline "
            "itself: no candidate did better.",
        ),
        (
            SEARCH[1:3],
            None,
            2,
            "AP 0.350 (1 seed, 3 epochs) at 9.00 ms (predicted): the best AP of all; there is no trained "
            "baseline to compare with.",
        ),
        (
            [SEARCH[0], trial(1, 1, 0.3001, 9.9)],
            None,
            1,
            "AP 0.300 (1 seed, 3 epochs) at 9.90 ms (predicted): the best AP among the 2 detectors not slower "
            "than the baseline. It is as fast as the baseline within the predicted intervals (9.90 against "
            "10.00 ms); its AP is equal (0.300 against 0.300).",
        ),
        (
            [SEARCH[0], FINAL[1]],
            None,
            2,
            "AP 0.460 (1 seed, 12 epochs) at 9.00 ms (predicted): the only detector not slower than the "
            "baseline. It is 10% faster than the baseline (9.00 against 10.00 ms, predicted); its AP is not "
            "comparable: the baseline has 0.300 after 3 epochs.",
        ),
        (
            [SEARCH[0], *FINAL[:4], trial(13, 2, 0.38, 9.0, "final", 2)],
            None,
            2,
            "AP 0.427 ± 0.042 (3 seeds, 12 epochs) at 9.00 ms (predicted): the best AP among the 2 detectors "
            "not slower than the baseline. It is 10% faster than the baseline (9.00 against 10.00 ms, "
            "predicted); its AP is equal within the spread over seeds (0.427 against 0.410).",
        ),
    ],
)
def test_the_recommendation_and_its_sentence(
    candidates: list[Candidate], limit: float | None, winner: int, reason: str
) -> None:
    ranking = rank(candidates, limit)
    assert ranking.recommendation is not None
    assert ranking.recommendation.architecture == name(winner) == ranking.rows[0].architecture
    assert ranking.recommendation.reason == reason


@pytest.mark.parametrize(
    ("candidates", "limit_ms", "most", "why"),
    [
        (SEARCH, 1.0, None, "no trained detector is within 1 ms (the fastest takes 4.00 ms)."),
        (SEARCH + FINAL, 1.0, None, "no trained detector is within 1 ms (the fastest takes 4.00 ms)."),
        (
            [replace(c, parameters=1000 + c.number) for c in SEARCH],
            1.0,
            999,
            "no trained detector is within 1 ms and of at most 999 parameters (the fastest takes 4.00 ms, the "
            "smallest has 1,000).",
        ),
        ([replace(c, score=0.0) for c in SEARCH], None, None, "every AP is 0."),
        ([replace(c, score=0.0) for c in SEARCH], 25.0, None, "every AP is 0."),
    ],
)
def test_nothing_over_a_limit_or_without_an_ap_is_recommended(
    tmp_path: Path, candidates: list[Candidate], limit_ms: float | None, most: int | None, why: str
) -> None:
    ranking = rank(candidates, limit_ms, ("kept",), most)
    assert ranking.recommendation is None
    assert ranking.rows, "they are shown for comparison"
    assert ranking.notes == ("kept", f"Nothing is recommended: {why}")
    written = write_ranking(tmp_path, stub.settings(latency_ms=limit_ms, max_parameters=most), ranking)
    assert written == read_ranking(tmp_path)
    assert written.notes == ranking.notes


FOUND_NOTHING = [trial(8, 0, 0.0, 10.0, "final"), trial(9, 2, 0.0, 9.0, "final")]


@pytest.mark.parametrize(
    ("candidates", "limit_ms", "most", "winner", "why"),
    [
        (
            [SEARCH[0], SEARCH[2], SEARCH[3], *FOUND_NOTHING],
            None,
            None,
            3,
            "no detector with an AP above 0 is as fast as the baseline, so the best AP of the slower ones. It is 100% "
            "slower than the baseline (20.00 against 10.00 ms, predicted); its AP is not comparable: the baseline has "
            "0.000 after 12 epochs.",
        ),
        (
            [*SEARCH[:3], *FOUND_NOTHING],
            None,
            None,
            1,
            "the only detector with an AP above 0 not slower than the baseline. It is 60% faster",
        ),
        (
            [*SEARCH[:3], *FOUND_NOTHING],
            9.0,
            None,
            1,
            "the only detector with an AP above 0 within 9 ms. It is 60% faster",
        ),
        (SEARCH, 25.0, 1000, 0, "the only detector with at most 1,000 parameters within 25 ms. It is the baseline"),
        (SEARCH, None, 1000, 0, "nothing else with at most 1,000 parameters is as fast. It is the baseline"),
        (
            [*SEARCH, replace(FINAL[0], state="failed", score=None), FINAL[4]],
            None,
            None,
            3,
            "no retrained detector is as fast as the baseline, so the best AP of the slower ones. It is 100% slower",
        ),
    ],
)
def test_the_sentence_says_what_bars_detectors_that_are_in_the_ranking(
    candidates: list[Candidate], limit_ms: float | None, most: int | None, winner: int, why: str
) -> None:
    ranking = rank(candidates, limit_ms, (), most)
    assert ranking.recommendation is not None
    assert ranking.recommendation.architecture == name(winner) == ranking.rows[0].architecture
    assert ranking.recommendation.reason.split(" (predicted): ", 1)[1].startswith(why)


def test_a_note_says_how_many_retrained_detectors_have_an_ap_of_0() -> None:
    def noted(*finals: Candidate) -> list[str]:
        return [n for n in search_notes([*SEARCH, *finals], settings(), {}, finished=True) if n.startswith("AP is 0")]

    nothing = "AP is 0 for {} of 2 retrained detectors: such a detector is never recommended."
    assert noted(*FOUND_NOTHING) == [nothing.format(2)]
    assert noted(FINAL[0], FOUND_NOTHING[1]) == [nothing.format(1)]
    assert noted(*FOUND_NOTHING, replace(FINAL[0], number=10, seed=1)) == [nothing.format(1)], "another seed has one"
    assert noted(*FINAL) == noted() == []


def test_a_detector_within_the_limits_goes_before_better_ones_beyond() -> None:
    sized = [replace(c, parameters=1000 + c.number) for c in SEARCH]
    smallest = rank(sized, 25.0, (), 1000)
    assert smallest.recommendation is not None
    assert (smallest.recommendation.architecture, smallest.rows[0].role) == (name(0), "baseline")
    assert {band.architecture for band in smallest.bands} == {name(0)}
    searched = rank(SEARCH + FINAL, 5.0)
    assert searched.recommendation is not None
    assert (searched.recommendation.architecture, searched.rows[0].stage) == (name(1), "structural")


def test_three_detectors_are_named(tmp_path: Path) -> None:
    finals = [
        trial(8, 0, 0.400, 10.0, "final"),
        trial(9, 1, 0.395, 3.2, "final"),
        trial(10, 2, 0.420, 9.0, "final"),
        trial(11, 3, 0.500, 20.0, "final"),
        trial(12, 4, 0.394, 2.0, "final"),  # faster, and 0.006 below the baseline
    ]
    found = rank(SEARCH + finals, None)
    assert [(pick.name, pick.architecture) for pick in found.picks] == [
        ("fastest as good as the baseline", name(1)),
        ("best at the baseline's latency", name(2)),
        ("best of all", name(3)),
    ]
    assert found.recommendation is not None
    assert found.picks[1].reason == found.recommendation.reason
    assert found.picks[0].reason == (
        "AP 0.395 (1 seed, 12 epochs) at 3.20 ms (predicted): the fastest of 4 with an AP of at least the baseline's "
        "less 0.005. It is 68% faster than the baseline (3.20 against 10.00 ms, predicted); its AP is worse by 0.005 "
        "(0.395 against 0.400)."
    )
    assert found.picks[2].reason.startswith("AP 0.500 (1 seed, 12 epochs) at 20.00 ms (predicted): the best AP of all.")
    limited = rank(SEARCH + finals, 9.5)
    assert [(pick.name, pick.architecture) for pick in limited.picks] == [
        ("fastest as good as the baseline", name(1)),
        ("best within the limit", name(2)),
        ("best of all", name(3)),
    ]
    assert "the best AP of all, over the limit of 9.5 ms. It is 100% slower" in limited.picks[2].reason
    strict = rank(SEARCH + finals, 3.0)
    assert [pick.architecture for pick in strict.picks] == [name(4), name(3)], "none as good is within the limit"
    sized = [replace(c, parameters=10 if c.architecture != NANO.structures[3] else 99) for c in SEARCH + finals]
    assert [pick.architecture for pick in rank(sized, None, (), 50).picks] == [name(1), name(2), name(2)]
    assert rank(SEARCH + finals, 1.0).picks == (), "nothing is recommended"
    assert [pick.architecture for pick in rank(SEARCH[:1], None).picks] == [name(0)] * 3
    assert [pick.name for pick in rank(SEARCH[1:3], None).picks] == ["best of all"], "no baseline to compare with"
    written = write_ranking(tmp_path, settings(), found)
    assert read_ranking(tmp_path).picks == written.picks == found.picks
    document = json.loads((tmp_path / "ranking.json").read_text())
    del document["picks"]  # as earlier versions wrote it
    (tmp_path / "ranking.json").write_text(json.dumps(document))
    assert read_ranking(tmp_path).picks == ()
    assert complete_ranking(tmp_path, settings(), {}).picks == found.picks


def test_of_equal_ap_the_faster_one_wins() -> None:
    ranking = rank([SEARCH[0], trial(1, 1, 0.4, 9.0), trial(2, 2, 0.4, 8.0)], None)
    assert ranking.rows[0].architecture == name(2)


def test_recommending_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        recommend([], None)


def test_files_are_strict_json_and_csv_and_read_back(tmp_path: Path) -> None:
    written = write_ranking(tmp_path, settings(), rank(SEARCH + FINAL, None, ["one note"]))
    document = json.loads((tmp_path / "ranking.json").read_text(), parse_constant=pytest.fail)
    assert document["format_version"] == 1
    assert document["settings"]["preset"] == "nano"
    assert document["recommendation"]["architecture"] == name(2)
    assert document["notes"] == ["one note"]
    assert document["rows"][0]["ap_per_seed"] == [0.46, 0.44]
    assert document["rows"][0]["measured_latency_ms"] is None
    with (tmp_path / "ranking.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["architecture"] for line in lines] == [row.architecture for row in written.rows]
    assert lines[0]["ap_per_seed"] == "0.46;0.44"
    assert lines[0]["model"] == ""
    assert read_ranking(tmp_path) == written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ranking.csv", "ranking.json"]


def test_an_export_completes_rows_and_a_rewrite_keeps_them(tmp_path: Path) -> None:
    write_ranking(tmp_path, settings(), rank(SEARCH + FINAL, None))
    measured = {
        name(2): {
            "model": f"models/{name(2)}/model.onnx",
            "measured_latency_ms": 11.0,
            "measured_latency_low_ms": 10.9,
            "measured_latency_high_ms": 11.1,
            "exported_ap": 0.46,
        },
        name(0): {"measured_latency_ms": 10.0, "measured_latency_low_ms": 9.9, "measured_latency_high_ms": 10.1},
    }
    after = complete_ranking(tmp_path, settings(), measured, ["measured on the files"])
    assert after.notes == ("measured on the files",)
    assert after.recommendation is not None
    # Measured, the candidate is slower than the baseline: it is no longer recommended.
    assert after.recommendation.architecture == name(0)
    assert "10.00 ms (measured)" in after.recommendation.reason
    assert by_name(after)[name(2)].exported_ap == 0.46
    again = write_ranking(tmp_path, settings(), rank(SEARCH + FINAL, None))
    assert by_name(again)[name(2)].measured_latency_ms == 11.0
    retrained = write_ranking(tmp_path, settings(), rank([*SEARCH, *FINAL, trial(13, 2, 0.5, 9.0, "final", 2)], None))
    assert by_name(retrained)[name(2)].measured_latency_ms is None, "other weights, another model"


def test_what_was_measured_on_other_weights_of_the_same_ap_is_not_kept(tmp_path: Path) -> None:
    write_ranking(tmp_path, settings(), rank(SEARCH, None))
    complete_ranking(tmp_path, settings(), {name(2): {"measured_latency_ms": 11.0, "exported_ap": 0.35}})
    kept = write_ranking(tmp_path, settings(), rank(SEARCH, None))
    assert by_name(kept)[name(2)].exported_ap == 0.35
    moved = [replace(c, checkpoint=f"elsewhere/{c.number}.pt") for c in SEARCH]
    anew = write_ranking(tmp_path, settings(), rank(moved, None))
    assert by_name(anew)[name(2)].exported_ap is None


def test_measured_and_predicted_latencies_are_not_mixed_in_a_comparison(tmp_path: Path) -> None:
    write_ranking(tmp_path, settings(), rank(SEARCH, None))
    after = complete_ranking(tmp_path, settings(), {name(2): {"measured_latency_ms": 30.0}})
    assert after.recommendation is not None
    assert after.recommendation.architecture == name(2), "the baseline is not measured: predictions are compared"
    limited = complete_ranking(tmp_path, settings(latency_ms=9.6), {name(2): {"measured_latency_ms": 30.0}})
    assert limited.recommendation is not None
    assert limited.recommendation.architecture == name(4), "a limit is compared with the measurement"


def test_wrong_completions_and_files(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"has none"):
        read_ranking(tmp_path)
    write_ranking(tmp_path, settings(), rank(SEARCH, None))
    with pytest.raises(RunFolderError, match=r"which it does not have"):
        complete_ranking(tmp_path, settings(), {name(2): {"ap": 0.99}})
    with pytest.raises(RunFolderError, match=r"which it does not have"):
        complete_ranking(tmp_path, settings(), {name(7): {"exported_ap": 0.99}})
    file = tmp_path / "ranking.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 7', 1))
    with pytest.raises(RunFolderError, match=r"format 1, but .* has 7"):
        read_ranking(tmp_path)
    file.write_text("{")
    with pytest.raises(RunFolderError, match=r"must hold a ranking"):
        read_ranking(tmp_path)


def tied(aps: dict[int, tuple[float, float]], spread: float, widths: float = 0.02) -> list[RankingRow]:
    """Final rows by index: (AP, latency), three seeds each."""
    return [
        RankingRow(
            rank=0,
            architecture=name(index),
            id=str(index),
            role="candidate",
            stage="final",
            on_front=False,
            ap=ap,
            ap_std=spread,
            ap_per_seed=(ap - spread, ap, ap + spread),
            ap50=None,
            seeds=(0, 1, 2),
            epochs=12,
            predicted_latency_ms=latency,
            predicted_latency_low_ms=(1 - widths) * latency,
            predicted_latency_high_ms=(1 + widths) * latency,
        )
        for index, (ap, latency) in aps.items()
    ]


def test_of_detectors_whose_ap_ties_the_fastest_is_recommended() -> None:
    rows = tied({1: (0.455, 9.7), 2: (0.450, 9.1), 3: (0.449, 7.6), 4: (0.40, 5.0)}, spread=0.004)
    recommendation, order = recommend(rows, None)
    assert order == [2, 1, 0, 3], "then the rest by the same rule"
    assert recommendation is not None
    assert recommendation.architecture == name(3)
    assert recommendation.reason == (
        "AP 0.449 ± 0.004 (3 seeds, 12 epochs) at 7.60 ms (predicted): as fast as any of the 3 that tie within the "
        "spread over seeds for the best AP (0.455) of all; there is no trained baseline to compare with."
    )
    clear = tied({1: (0.455, 9.7), 2: (0.440, 9.1)}, spread=0.004)
    assert recommend(clear, None)[1] == [0, 1], "0.015 is more than both spreads"
    unknown = [replace(row, ap_std=None) for row in rows]
    assert recommend(unknown, None)[1] == [0, 1, 2, 3], "one seed has no spread to tie within"


def test_of_those_that_are_as_fast_the_best_ap_is_recommended() -> None:
    rows = tied({1: (0.455, 9.7), 2: (0.452, 7.7), 3: (0.449, 7.6)}, spread=0.004)
    assert recommend(rows, None)[1][0] == 1, "7.7 and 7.6 ms are equal within the intervals"
    assert recommend(tied({2: (0.452, 7.7), 3: (0.449, 7.6)}, 0.004, widths=0.0), None)[1][0] == 1


def test_a_limit_comes_before_ties() -> None:
    rows = tied({1: (0.455, 9.7), 2: (0.450, 9.1)}, spread=0.004)
    assert recommend(rows, 9.5)[1] == [1, 0]
    assert recommend(rows, 20.0)[1] == [1, 0]


def test_every_latency_limit_has_its_recommendation() -> None:
    rows = tied({1: (0.2, 2.0), 2: (0.4, 5.0), 3: (0.399, 4.0), 4: (0.35, 8.0), 5: (0.6, 10.0)}, spread=0.004)
    bands = band_recommendations(rows)
    assert [(b.from_ms, b.below_ms, b.architecture) for b in bands] == [
        (2.0, 4.0, name(1)),
        (4.0, 10.0, name(3)),  # at 5 ms a tie is slower, at 8 ms another one is worse
        (10.0, None, name(5)),
    ]
    for band in bands:
        for limit in (band.from_ms, (band.from_ms + (band.below_ms or 20.0)) / 2):
            chosen = recommend(rows, limit)[0]
            assert chosen is not None
            assert chosen.architecture == band.architecture
    assert bands[0].reason.endswith("the only one so fast.")
    assert [band_limits(b) for b in bands] == ["2.00 to 4.00 ms", "4.00 to 10.00 ms", "10.00 ms and more"]
    assert band_recommendations([]) == ()


def test_rank_correlations_compare_the_search_with_the_end(tmp_path: Path) -> None:
    ranking = rank(SEARCH + FINAL, None)
    assert [(row.architecture, row.search_ap) for row in ranking.rows[:3]] == [
        (name(2), 0.35),
        (name(0), 0.30),
        (name(3), 0.50),
    ]
    (ap,) = ranking.correlations
    assert (ap.what, ap.detectors) == ("AP in the search and AP in the final phase", 3)
    assert ap.tau == pytest.approx(1.0), "0.30, 0.35, 0.50 became 0.41, 0.45, 0.60"
    write_ranking(tmp_path, settings(), ranking)
    measured = {name(i): {"measured_latency_ms": ms} for i, ms in ((0, 11.0), (2, 12.0), (3, 30.0))}
    after = complete_ranking(tmp_path, settings(), measured)
    assert after.correlations[1].what == "predicted and measured latency"
    assert after.correlations[1].tau == pytest.approx(1 / 3), "one of three pairs changed its order"
    assert read_ranking(tmp_path) == after
    assert rank(SEARCH, None).correlations == ()


def test_a_reader_is_told_which_latencies_are_assumptions() -> None:
    calibrated = [replace(c, latency_calibrated=True) for c in SEARCH]
    assert not any("calibrated" in note for note in search_notes(calibrated, settings(), {}, finished=True))
    one = [*calibrated[:-1], replace(calibrated[-1], latency_calibrated=False)]
    assert any("not calibrated on whole detectors" in note for note in search_notes(one, settings(), {}, finished=True))


def test_ap_of_held_out_images_says_so_and_shows_validation_ap_beside_it(tmp_path: Path) -> None:
    held_out = [replace(c, metrics={**c.metrics, "validation_ap": c.point[0] + 0.1}) for c in FINAL]
    ranking = rank([*SEARCH, *held_out], None)
    plain = rank([*SEARCH, *FINAL], None)
    assert [row.ap for row in ranking.rows] == [row.ap for row in plain.rows]
    assert [row.validation_ap for row in ranking.rows if row.stage == "final"] == pytest.approx(
        [row.ap + 0.1 for row in plain.rows if row.stage == "final"]
    )
    assert {row.validation_ap for row in ranking.rows if row.stage != "final"} == {None}
    assert (ranking.ap_split, plain.ap_split) == ("test", "validation")
    assert "held-out" in ranking.ap_line
    assert "validation images, which the search" in plain.ap_line
    write_ranking(tmp_path, settings(), ranking)
    assert json.loads((tmp_path / "ranking.json").read_text())["ap_split"] == "test"
    assert read_ranking(tmp_path).ap_split == "test"
