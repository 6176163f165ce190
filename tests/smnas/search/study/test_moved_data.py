"""A search resumes wherever its data have moved, and is refused where others lie in their place."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import search_stub as stub

from smnas.data.coco import CocoFolder
from smnas.data.contents import contents
from smnas.data.errors import DataError
from smnas.data.shapes import generate_shapes
from smnas.scoring.workers.processes import InProcess
from smnas.search.context import SearchContext
from smnas.search.ranking.ranking import Ranking
from smnas.search.run import run_search
from smnas.search.study.optuna_study import read_candidates
from smnas.search.study.settings import (
    DataFacts,
    RunFolderError,
    SearchSettings,
    StageTrials,
    data_facts,
    open_data,
    prepare_run_folder,
    read_settings,
    run_digest,
)
from smnas.search.study.warm_start import warm_candidates
from smnas.space.preset import load_space

NANO = load_space("nano")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return generate_shapes(tmp_path / "data", train=2, val=1, width=32, height=32)


def settings(run: Path, data: Path, **changes: object) -> SearchSettings:
    usual = {
        "trials": StageTrials(structural=2, modular=0),
        "final_epochs": 0,
        "data": data_facts(CocoFolder(data), run),
    }
    return stub.settings(**(usual | changes))


def search(run: Path, settings: SearchSettings, scorer: stub.StubScorer | None = None) -> Ranking:
    return run_search(
        SearchContext(run, settings, NANO, stub.StubLatency()),
        scorers=InProcess(scorer or stub.StubScorer()),
        complexity=stub.complexity,
    )


def copied(data: Path) -> Path:
    return Path(shutil.copytree(data, data.with_name("copy")))


def renamed(data: Path) -> Path:
    return data.rename(data.with_name("renamed"))


def linked(data: Path) -> Path:
    link = data.with_name("link")
    link.symlink_to(data)
    return link


def in_a_deeper_folder(data: Path) -> Path:
    (data.parent / "a" / "b").mkdir(parents=True)
    return Path(shutil.move(data, data.parent / "a" / "b" / "images"))


def not_as_utf_8(data: Path) -> Path:
    return data.rename(data.with_name("im\udcffages"))


@pytest.mark.parametrize("move", [copied, renamed, linked, in_a_deeper_folder, not_as_utf_8])
def test_a_run_folder_takes_data_that_have_moved(tmp_path: Path, data: Path, move: Callable[[Path], Path]) -> None:
    run = tmp_path / "run"
    prepare_run_folder(run, settings(run, data))
    place = move(data)
    assert prepare_run_folder(run, settings(run, place)) is True
    assert read_settings(run).data == data_facts(CocoFolder(place), run), "it is known where the data are now"
    assert contents(open_data(run, read_settings(run).data)) == contents(CocoFolder(place))


@pytest.mark.slow
def test_a_killed_search_resumes_where_its_data_have_moved(tmp_path: Path, data: Path) -> None:
    run, scorer = tmp_path / "run", stub.StubScorer(raises={2: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        search(run, settings(run, data), scorer)
    place = renamed(data)
    search(run, settings(run, place))
    straight = settings(tmp_path / "straight", place)
    search(tmp_path / "straight", straight)
    assert read_candidates(run, straight) == read_candidates(tmp_path / "straight", straight)


def test_a_link_that_leads_elsewhere_is_followed(tmp_path: Path, data: Path) -> None:
    run, link = tmp_path / "run", linked(data)
    prepare_run_folder(run, settings(run, link))
    moved = renamed(data)
    link.unlink()
    link.symlink_to(moved)
    assert contents(open_data(run, read_settings(run).data)) == contents(CocoFolder(moved))
    other = generate_shapes(tmp_path / "other", train=2, val=1, width=32, height=32, seed=1)
    link.unlink()
    link.symlink_to(other)
    with pytest.raises(RunFolderError, match=r"must hold the data set of the search, but it holds \d+ training boxes"):
        open_data(run, read_settings(run).data)


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"train": 3, "val": 1}, "3 training images instead of 2"),
        ({"train": 2, "val": 2}, "2 validation images instead of 1"),
        ({"train": 2, "val": 1, "seed": 5}, " boxes "),
    ],
)
def test_others_in_the_same_place_are_refused_in_one_line(
    tmp_path: Path, data: Path, others: dict[str, int], says: str
) -> None:
    run = tmp_path / "run"
    prepare_run_folder(run, settings(run, data))
    before = (run / "settings.json").read_bytes()
    shutil.rmtree(data)
    generate_shapes(data, width=32, height=32, **others)
    with pytest.raises(RunFolderError, match="resumed on the data set that it was begun with") as caught:
        prepare_run_folder(run, settings(run, data))
    assert says in str(caught.value)
    assert str(data) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (run / "settings.json").read_bytes() == before


@pytest.mark.parametrize("by_link", [False, True])
def test_a_run_folder_moves_with_the_data_inside(tmp_path: Path, data: Path, by_link: bool) -> None:
    run = tmp_path / "run"
    if by_link:
        (tmp_path / "real").mkdir()
        run.symlink_to(tmp_path / "real")
    run.mkdir(exist_ok=True)
    inside = data.rename(run / "data")
    prepare_run_folder(run, settings(run, inside))
    assert read_settings(run).data.root == "data"
    moved = (tmp_path / "real" if by_link else run).rename(tmp_path / "moved")
    assert prepare_run_folder(moved, settings(moved, moved / "data")) is True
    assert SearchContext(moved, read_settings(moved), NANO).data.root == moved / "data"


def test_generated_images_of_an_earlier_version_are_found_where_the_run_is_now(tmp_path: Path, data: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    prepare_run_folder(run, settings(run, data.rename(run / "data")))
    forget(run, root=str(run / "data"))
    moved = run.rename(tmp_path / "moved")
    found = open_data(moved, read_settings(moved).data)
    assert found.root == moved / "data"
    (moved / "data").rename(tmp_path / "gone")
    with pytest.raises(DataError, match="there is no folder"):
        open_data(moved, read_settings(moved).data)


def forget(run: Path, **facts: object) -> None:
    """Turn its settings into those of an earlier version."""
    file = run / "settings.json"
    document = json.loads(file.read_text())
    for name in ("category_ids", "train_boxes", "val_boxes", "train_digest", "val_digest"):
        del document["data"][name]
    del document["warm_start_digests"]
    document["data"] |= facts
    file.write_text(json.dumps(document))


def test_settings_of_an_earlier_version_resume_by_classes_and_counts(tmp_path: Path, data: Path) -> None:
    run = tmp_path / "run"
    prepare_run_folder(run, settings(run, data))
    forget(run)
    moved = renamed(data)
    other = generate_shapes(tmp_path / "other", train=3, val=1, width=32, height=32)
    with pytest.raises(RunFolderError, match="3 training images instead of 2"):
        prepare_run_folder(run, settings(run, other))
    assert prepare_run_folder(run, settings(run, moved)) is True
    assert read_settings(run).data == data_facts(CocoFolder(moved), run), "from now on by all that it contains"


@pytest.mark.slow
def test_a_search_is_warm_started_from_a_run_that_has_moved_with_its_data(tmp_path: Path, data: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    inside = data.rename(first / "data")
    search(first, settings(first, inside))
    mine = copied(first / "data").rename(tmp_path / "mine")
    moved = first.rename(tmp_path / "moved")
    second, scorer = tmp_path / "second", stub.StubScorer()
    start = {"warm_start": (str(moved),), "warm_start_digests": (run_digest(moved),), "seed": 7}
    search(second, settings(second, mine, **start), scorer)
    taken = [c for c in read_candidates(second, read_settings(second)) if c.stage in ("baseline", "warm")]
    assert len(taken) == 3
    assert str(NANO.baseline_architecture) not in {name for name, _, _ in scorer.calls}

    elsewhere, again = moved.rename(tmp_path / "elsewhere"), stub.StubScorer()
    start |= {"warm_start": (str(elsewhere),)}
    search(second, settings(second, mine, **start), again)
    assert again.calls == []
    assert read_settings(second).warm_start == (str(elsewhere),)
    shutil.rmtree(elsewhere)
    search(second, settings(second, mine, **(start | {"warm_start_digests": ("",)})), again)
    assert again.calls == []


def test_a_warm_start_on_other_data_or_from_another_run_is_refused(tmp_path: Path, data: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    prepare_run_folder(first, settings(first, data))
    other = generate_shapes(tmp_path / "other", train=2, val=2, width=32, height=32)
    with pytest.raises(RunFolderError, match="differs in data: 2 validation images instead of 1"):
        warm_candidates(settings(second, other, warm_start=(str(first),)), NANO)
    third = tmp_path / "third"
    prepare_run_folder(third, settings(third, data, seed=3))
    runs = {run.name: (str(run), run_digest(run)) for run in (first, third)}
    assert runs["first"][1] != runs["third"][1]
    prepare_run_folder(
        second, settings(second, data, warm_start=runs["first"][:1], warm_start_digests=runs["first"][1:])
    )
    with pytest.raises(RunFolderError, match=r"\(warm_start = .*first.*third"):
        prepare_run_folder(
            second, settings(second, data, warm_start=runs["third"][:1], warm_start_digests=runs["third"][1:])
        )
    with pytest.raises(RunFolderError, match="warm_start"):
        prepare_run_folder(second, settings(second, data))


def test_what_is_left_out_is_left_out_wherever_a_search_opens_its_data(tmp_path: Path, data: Path) -> None:
    document = json.loads((data / "annotations" / "instances_train.json").read_text())
    document["images"].append({"id": 99, "file_name": "gone.jpg", "width": 5, "height": 5})
    document["annotations"].append({**document["annotations"][0], "bbox": [0, 0, 0, 0]})
    (data / "annotations" / "instances_train.json").write_text(json.dumps(document))
    folder, run = CocoFolder(data, drop_bad_boxes=True, drop_bad_images=True), tmp_path / "run"
    known = stub.settings(data=data_facts(folder, run))
    opened = SearchContext(run, known, NANO).data
    assert contents(opened) == contents(folder)
    assert len(opened.split("train")) == 2


def test_the_name_of_a_recipe_is_no_setting(tmp_path: Path, data: Path) -> None:
    run, recipe = tmp_path / "run", {"epochs": 3, "name": "mine"}
    prepare_run_folder(run, settings(run, data, recipe=recipe))
    prepare_run_folder(run, settings(run, data, recipe=recipe | {"name": "renamed"}))
    with pytest.raises(RunFolderError, match=r"recipe.epochs = 3 .*; give another --out$"):
        prepare_run_folder(run, settings(run, data, recipe=recipe | {"epochs": 4}))


def test_more_trials_are_a_warm_start(tmp_path: Path, data: Path) -> None:
    run = tmp_path / "run"
    prepare_run_folder(run, settings(run, data))
    with pytest.raises(RunFolderError, match=f"give another --out, with --warm-start {run} to begin with its training"):
        prepare_run_folder(run, settings(run, data, trials=StageTrials(structural=3, modular=0)))


def test_held_out_images_move_with_the_data_and_are_those_that_the_search_began_with(
    tmp_path: Path, data: Path
) -> None:
    run = tmp_path / "run"

    def of(facts: DataFacts) -> SearchSettings:
        return settings(run, data if data.exists() else data.with_name("renamed")).model_copy(update={"data": facts})

    others = generate_shapes(tmp_path / "others", train=1, val=2, width=32, height=32, seed=1)
    shutil.copytree(others / "val", data / "test")
    shutil.copyfile(others / "annotations" / "instances_val.json", data / "annotations" / "instances_test.json")
    begun = of(data_facts(CocoFolder(data, test=data), run))
    prepare_run_folder(run, begun)
    assert len(open_data(run, read_settings(run).data).reported) == 2
    assert prepare_run_folder(run, of(data_facts(CocoFolder(data, test=others), run))), "the same images elsewhere"
    with pytest.raises(RunFolderError, match=r"held-out images .* \(2 in .*\), but got none; give another --out$"):
        prepare_run_folder(run, of(data_facts(CocoFolder(data), run)))
    fewer = generate_shapes(tmp_path / "fewer", train=1, val=1, width=32, height=32, seed=2)
    with pytest.raises(RunFolderError, match="1 test images instead of 2"):
        prepare_run_folder(run, of(data_facts(CocoFolder(data, test=fewer), run)))
    place = renamed(data)
    prepare_run_folder(run, of(data_facts(CocoFolder(place, test=place), run)))
    assert len(open_data(run, read_settings(run).data).reported) == 2
