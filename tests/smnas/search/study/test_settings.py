"""settings.json: it holds a resumed search to what it was begun with."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from profiler.atomic import write_atomic
from smnas.search.study.settings import (
    DataFacts,
    RunFolderError,
    SearchSettings,
    StageTrials,
    prepare_run_folder,
    read_settings,
    space_of_run,
    space_settings,
)
from smnas.space.preset import SpaceError, load_space, space_toml


def settings(**changes: object) -> SearchSettings:
    values = {
        "smnas": "0.1.0",
        "preset": "nano",
        "data": DataFacts(root="shapes", classes=("disc", "box"), train_images=10, val_images=5),
        "device": "cpu",
        "backend": "onnxruntime",
        "precision": "fp32",
        "recipe": {"epochs": 3, "scale_jitter": [0.8, 1.25]},
        "epochs": 3,
        "scorer": "ap",
        "trials": StageTrials(structural=10, modular=10),
    }
    return SearchSettings(**(values | changes))  # type: ignore[arg-type]


def test_a_new_folder_is_made_and_the_same_settings_resume_it(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    assert prepare_run_folder(folder, settings(latency_ms=5.0)) is False
    assert prepare_run_folder(folder, settings(latency_ms=5.0)) is True
    assert read_settings(folder) == settings(latency_ms=5.0)
    assert sorted(p.name for p in folder.iterdir()) == [".lock", "settings.json"], "no temporary file is left"
    document = json.loads((folder / "settings.json").read_text())
    assert document["format_version"] == 1
    assert document["trials"] == {"structural": 10, "modular": 10}


def test_newer_software_may_resume(tmp_path: Path) -> None:
    prepare_run_folder(tmp_path, settings(versions={"torch": "2.11"}))
    assert prepare_run_folder(tmp_path, settings(smnas="0.2.0", versions={"torch": "2.14"})) is True
    assert read_settings(tmp_path).smnas == "0.1.0", "the file says who began the run"


def test_a_setting_that_is_gone_holds_nobody_up(tmp_path: Path) -> None:
    prepare_run_folder(tmp_path, settings())
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "final_recipe": {}}))
    assert prepare_run_folder(tmp_path, settings()) is True
    assert read_settings(tmp_path) == settings()


def test_a_space_from_a_file_outlives_it_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    file, folder = tmp_path / "mine.toml", tmp_path / "run"
    file.write_text(space_toml(load_space("nano")))
    prepare_run_folder(folder, settings(**space_settings(str(file), load_space(str(file)))))
    before = read_settings(folder)
    assert before.preset == "mine.toml"
    file.write_text(file.read_text().replace("max_blocks = 10", "max_blocks = 9"))
    changed = settings(**space_settings(str(file), space_of_run(str(file), before)))
    with pytest.raises(RunFolderError, match=r"\(space\.modular\.max_blocks = 10 in .*, but got 9"):
        prepare_run_folder(folder, changed)
    file.unlink()
    space = space_of_run(str(file), before)
    assert space == load_space("nano")
    assert prepare_run_folder(folder, settings(**space_settings(str(file), space))) is True
    with pytest.raises(SpaceError, match=r"readable TOML, but got other\.toml"):
        space_of_run("other.toml", before)


def test_of_two_searches_that_begin_at_once_the_first_keeps_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, second = tmp_path / "run", []

    def write(file: Path, text: str) -> None:
        # The other one begins when this one has found no settings, and has not written its own yet.
        with pytest.raises(RunFolderError, match="another process holds") as caught:
            prepare_run_folder(folder, settings(seed=1))
        second.append(str(caught.value))
        write_atomic(file, text)

    monkeypatch.setattr("smnas.search.study.settings.write_atomic", write)
    assert prepare_run_folder(folder, settings()) is False
    assert len(second) == 1
    assert read_settings(folder) == settings()
    with pytest.raises(RunFolderError, match=r"seed = 0 .*, but got 1"):
        prepare_run_folder(folder, settings(seed=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latency_ms": 7.0}, r"latency_ms = None .*, but got 7.0"),
        ({"seed": 1}, r"seed = 0 .*, but got 1"),
        ({"trials": StageTrials(structural=11, modular=10)}, r"trials.structural = 10 .*, but got 11"),
        ({"recipe": {"epochs": 4, "scale_jitter": [0.8, 1.25]}}, r"recipe.epochs = 3 .*, but got 4"),
        ({"recipe": {"epochs": 3}}, r"recipe.scale_jitter = \[0.8, 1.25\] .*, but got None"),
        (
            {"data": DataFacts(root="shapes", classes=("disc",), train_images=10, val_images=5)},
            "classes disc instead of disc, box",
        ),
    ],
)
def test_other_settings_are_one_line_that_names_the_first_difference(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    prepare_run_folder(tmp_path, settings())
    with pytest.raises(RunFolderError, match=message) as caught:
        prepare_run_folder(tmp_path, settings(**changes))
    assert "\n" not in str(caught.value)


def test_what_was_typed_is_named_before_what_follows_from_it(tmp_path: Path) -> None:
    prepare_run_folder(tmp_path, settings(strategy="halving", recipe={"ema_decay": 0.9}))
    with pytest.raises(RunFolderError, match=r"strategy = 'halving' .*, but got 'sm-nas'"):
        prepare_run_folder(tmp_path, settings(strategy="sm-nas", recipe={"ema_decay": 0.0}))


def test_a_folder_of_another_version(tmp_path: Path) -> None:
    prepare_run_folder(tmp_path, settings())
    file = tmp_path / "settings.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(RunFolderError, match=r"works on run folders of format 1, but .* has format 2"):
        prepare_run_folder(tmp_path, settings())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 1}', '{"format_version": 1, "colour": "red"}'])
def test_a_broken_settings_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(RunFolderError) as caught:
        prepare_run_folder(tmp_path, settings())
    assert "\n" not in str(caught.value)


def test_what_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="must be a folder, but got the file"):
        prepare_run_folder(tmp_path / "file", settings())
    (tmp_path / "study.db").write_text("x")
    with pytest.raises(RunFolderError, match=r"must have settings.json as well"):
        prepare_run_folder(tmp_path, settings())
    with pytest.raises(RunFolderError, match="has none"):
        read_settings(tmp_path)
    with pytest.raises(RunFolderError, match="must be writable"):
        prepare_run_folder(Path("/proc/run"), settings())


@pytest.mark.parametrize(
    "changes",
    [
        {"colour": "red"},
        {"latency_ms": 0.0},
        {"latency_ms": float("nan")},
        {"latency_tolerance": 0.9},
        {"random_share": 1.5},
        {"epochs": 0},
        {"trials": {"structural": -1, "modular": 0}},
        {"trials": {"structural": 1, "modular": 1, "final": 1}},
        {"top": 0},
    ],
)
def test_settings_out_of_range_or_unknown_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        settings(**changes)
