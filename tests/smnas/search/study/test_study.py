"""The study in optuna's storage: round trips, one transaction a step, one process at a time."""

import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from profiler.errors import UserError
from smnas.search.study.candidate import Candidate
from smnas.search.study.optuna_study import Study
from smnas.search.study.parameters import DISTRIBUTIONS, parameters_of
from smnas.search.study.settings import STUDY_NAME
from smnas.space.architecture import Architecture
from smnas.space.preset import load_space

NANO = load_space("nano")


def draft(number: int, **changes: object) -> Candidate:
    candidate = Candidate(
        number=number,
        architecture=NANO.structures[number],
        stage="structural",
        origin="mutation",
        parent=NANO.baseline,
        state="running",
        seed=3,
        epochs=5,
        latency_ms=4.0 + number,
        latency_low_ms=3.9,
        latency_high_ms=4.1,
        latency_calibrated=True,
        parameters=1234,
        flops=5_000_000_000,
    )
    return replace(candidate, **changes)  # type: ignore[arg-type]


def done(candidate: Candidate) -> Candidate:
    metrics = {"ap": 0.3, "ap50": 0.5, "ap_small": 0.1}
    return replace(
        candidate, state="complete", score=0.3, metrics=metrics, seconds=1.5, checkpoint="models/x/checkpoint.pt"
    )


def test_every_kind_of_trial_survives_reopening(tmp_path: Path) -> None:
    with Study(tmp_path) as study:
        study.finish(done(study.add(draft(0))))
        study.finish(replace(study.add(draft(1)), state="failed", reason="diverged", seconds=0.2))
        study.add(draft(2, state="pruned", reason="over the latency limit: 9.00 ms"))
        study.add(draft(3, state="failed", latency_ms=None, latency_low_ms=None, reason="does not build"))
        study.add(draft(4, parent=None, origin="random"))
        before = tuple(study.candidates)
        assert [c.state for c in study.interrupted()] == ["running"]
    with Study(tmp_path) as study:
        assert tuple(study.candidates) == before
        resumed = study.interrupted()
        assert [c.number for c in resumed] == [4]
        study.finish(done(resumed[0]))
        assert study.interrupted() == ()


def test_optuna_reads_it_with_values_parameters_and_names(tmp_path: Path) -> None:
    with Study(tmp_path) as study:
        study.finish(done(study.add(draft(0))))
        study.add(draft(1, state="pruned", reason="over the latency limit"))
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    loaded = optuna.load_study(study_name=STUDY_NAME, storage=storage)
    assert [d.name for d in loaded.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert loaded.metric_names == ["AP", "latency (ms)"]
    complete, pruned = loaded.trials
    assert complete.values == [0.3, 4.0]
    assert complete.params == parameters_of(NANO.structures[0])
    assert complete.user_attrs["architecture"] == str(NANO.structures[0])
    assert complete.user_attrs["metrics"] == {"ap": 0.3, "ap50": 0.5, "ap_small": 0.1}
    assert (complete.user_attrs["seed"], complete.user_attrs["epochs"]) == (3, 5)
    assert complete.datetime_complete is not None
    assert pruned.state is optuna.trial.TrialState.PRUNED
    assert pruned.user_attrs["reason"] == "over the latency limit"
    assert [t.number for t in loaded.best_trials] == [0]
    storage.engine.dispose()


def test_undefined_metrics_survive(tmp_path: Path) -> None:
    with Study(tmp_path) as study:
        study.finish(replace(done(study.add(draft(0))), metrics={"ap": 0.3, "ap_small": math.nan}))
    with Study(tmp_path) as study:
        assert math.isnan(study.candidates[0].metrics["ap_small"])


@pytest.mark.parametrize("name", ["nano", "small", "paper"])
def test_every_structure_is_expressible_in_the_parameters(name: str) -> None:
    used = set()
    for structure in load_space(name).structures[::7]:
        parameters = parameters_of(structure)
        used |= set(parameters)
        for key, value in parameters.items():
            internal = DISTRIBUTIONS[key].to_internal_repr(value)
            assert DISTRIBUTIONS[key].to_external_repr(internal) == value
            assert DISTRIBUTIONS[key]._contains(internal)
    absent = {"nano": {"width_percent", "cardinality", "path_width"}, "small": set[str](), "paper": {"fcos_depth"}}
    # no preset asks for other extra levels, and stage 1 has no super-blocks and no mbconv
    others = {"fpn_extra", "super_blocks", "stem", *(f"stage{i}_width" for i in range(1, 5))}
    assert used == set(DISTRIBUTIONS) - absent[name] - others


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mbconv_8_16k3e3-24k5e4.k3e4+fpn_2-3_64+rpn+rcnn_64+96x96", {"stem": 8, "blocks": 3, "stage2_width": 24}),
        ("resnext64x8_64_1-2+fpn_2-4_64c+rpn+rcnn_64+96x96", {"cardinality": 64, "path_width": 8, "fpn_extra": "conv"}),
        ("resnext_64_1-2+fpn_2-4_64+rpn+rcnn_64+96x96", {"cardinality": 32, "path_width": 4}),
        ("inverted_16_1-2+fpn_2-4_64p+norpn+retina_64+96x96", {"block": "inverted", "base": 16, "fpn_extra": "pool"}),
        ("mobilenetv2_75+fpn_2-4_64+rpn+rcnn_64+96x96", {"block": "mobilenetv2", "width_percent": 75}),
    ],
)
def test_parameters_of_every_kind_of_backbone(text: str, expected: dict[str, str | int]) -> None:
    parameters = parameters_of(Architecture.parse(text))
    assert expected.items() <= parameters.items()
    for key, value in parameters.items():
        assert DISTRIBUTIONS[key]._contains(DISTRIBUTIONS[key].to_internal_repr(value))


def test_parameters_say_what_the_string_says() -> None:
    architecture = Architecture.parse("bottleneck_56_211-1112-2111-1112+fpn_1-5_128+rpn+cascade_3_1024+800x600")
    assert parameters_of(architecture) == {
        "block": "bottleneck",
        "base": 56,
        "stages": 4,
        "blocks": 15,
        "doublings": 4,
        "stage1_blocks": 3,
        "stage2_blocks": 4,
        "stage3_blocks": 4,
        "stage4_blocks": 4,
        "neck": "fpn",
        "fpn_low": 1,
        "fpn_high": 5,
        "fpn_width": 128,
        "proposals": "rpn",
        "head": "cascade",
        "head_width": 1024,
        "cascade_stages": 3,
        "input_width": 800,
        "input_height": 600,
    }


def test_numbers_have_no_gaps_and_only_running_trials_finish(tmp_path: Path) -> None:
    with Study(tmp_path) as study:
        with pytest.raises(ValueError, match="next trial has the number 0, but got 1"):
            study.add(draft(1))
        finished = study.finish(done(study.add(draft(0))))
        with pytest.raises(ValueError, match="trial 0 is complete"):
            study.finish(finished)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Study(tmp_path), pytest.raises(UserError, match="one search at a time"):
        Study(tmp_path)
    Study(tmp_path).close()


def test_a_file_that_is_no_study_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"this is not a database, whatever its name says" * 100)
    with pytest.raises(UserError, match=r"study.db must be the SQLite file of a study") as caught:
        Study(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "study.db").unlink()
    Study(tmp_path).close()  # the folder was let go of


def test_a_foreign_trial_is_refused_and_foreign_notes_are_not(tmp_path: Path) -> None:
    with Study(tmp_path) as study:
        study.finish(done(study.add(draft(0))))
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    loaded = optuna.load_study(study_name=STUDY_NAME, storage=storage)
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute(
            "insert into trial_user_attributes (trial_id, key, value_json) values (1, 'my note', '\"fast\"')"
        )
    connection.close()
    with Study(tmp_path) as study:
        assert study.candidates[0].score == 0.3
    loaded.add_trial(optuna.trial.create_trial(values=[0.1, 0.2]))
    storage.remove_session()
    storage.engine.dispose()
    with pytest.raises(UserError, match="trial 1 has not: 'architecture'"):
        Study(tmp_path)
