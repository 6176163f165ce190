"""Held-out images: in the layouts of a data set, with its classes, and never those of training or validation."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from smnas.data.coco import CocoFolder, DataError, has_test_split
from smnas.data.contents import contents, difference
from smnas.data.shapes import generate_shapes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("data"), train=4, val=2, width=40, height=32)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("others"), train=2, val=3, width=40, height=32, seed=5)


def as_test_split(others: Path, place: Path) -> None:
    (place / "annotations").mkdir(parents=True, exist_ok=True)
    shutil.copytree(others / "val", place / "test")
    shutil.copyfile(others / "annotations" / "instances_val.json", place / "annotations" / "instances_test.json")


def as_roboflow_split(others: Path, place: Path) -> None:
    as_images_with_annotations(others, place / "test")


def as_images_with_annotations(others: Path, place: Path) -> None:
    shutil.copytree(others / "val", place)
    shutil.copyfile(others / "annotations" / "instances_val.json", place / "_annotations.coco.json")


def as_another_data_set(others: Path, place: Path) -> None:
    shutil.copytree(others, place)


@pytest.mark.parametrize("write", [as_test_split, as_roboflow_split, as_images_with_annotations, as_another_data_set])
def test_every_layout_opens(tmp_path: Path, data: Path, others: Path, write: Callable[[Path, Path], None]) -> None:
    write(others, tmp_path / "held-out")
    folder = CocoFolder(data, test=tmp_path / "held-out")
    assert folder.splits == ("train", "val", "test")
    assert folder.reported is folder.split("test")
    assert len(folder.reported) == 3
    assert folder.reported.digest == CocoFolder(others).split("val").digest


def test_without_one_nothing_is_held_out(data: Path) -> None:
    folder = CocoFolder(data)
    assert (folder.splits, folder.reported) == (("train", "val"), folder.split("val"))
    assert "test_images" not in contents(folder)


@pytest.mark.parametrize("write", [as_test_split, as_roboflow_split])
def test_a_data_set_may_have_its_own(
    tmp_path: Path, data: Path, others: Path, write: Callable[[Path, Path], None]
) -> None:
    shutil.copytree(data, tmp_path / "data")
    assert not has_test_split(tmp_path / "data")
    write(others, tmp_path / "data")
    assert has_test_split(tmp_path / "data")
    assert len(CocoFolder(tmp_path / "data", test=tmp_path / "data").reported) == 3


def refused(data: Path, test: Path) -> str:
    with pytest.raises(DataError) as caught:
        CocoFolder(data, test=test)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_can_not_be_held_out_is_refused_in_one_line(tmp_path: Path, data: Path, others: Path) -> None:
    assert refused(data, tmp_path / "nothing").endswith(f"{tmp_path / 'nothing'} is no folder")
    (tmp_path / "empty").mkdir()
    assert refused(data, tmp_path / "empty").endswith(f"{tmp_path / 'empty'} has none of them")
    assert "others than those of training and validation" in refused(data, data)
    as_images_with_annotations(others, tmp_path / "classes")
    file = tmp_path / "classes" / "_annotations.coco.json"
    document = json.loads(file.read_text())
    document["categories"][0]["name"] = "lion"
    file.write_text(json.dumps(document))
    message = refused(data, tmp_path / "classes")
    assert "same categories" in message
    assert "lion" in message


def test_other_held_out_images_are_another_data_set(data: Path, others: Path, tmp_path: Path) -> None:
    once, again = (contents(CocoFolder(data, test=test)) for test in (others, shutil.copytree(others, tmp_path / "o")))
    assert difference(once, again) is None
    more = generate_shapes(tmp_path / "more", train=1, val=3, width=40, height=32, seed=6)
    found = difference(once, contents(CocoFolder(data, test=more)))
    assert found is not None
    assert "test" in found
