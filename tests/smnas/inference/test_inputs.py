"""What a command's arguments mean: files, folders and patterns, images and videos apart."""

from pathlib import Path

import pytest

from profiler.errors import UserError
from smnas.inference.inputs import find_inputs


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    return folder


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a.PNG", "c.txt", "deep/d.jpg")
    (tmp_path / "empty").mkdir()
    assert find_inputs([tmp_path]).images == (tmp_path / "a.PNG", tmp_path / "b.jpg")
    assert find_inputs([tmp_path / "c.txt"]).images == (tmp_path / "c.txt",)
    deep = find_inputs([str(tmp_path / "**" / "*.jpg")])
    assert deep.images == (tmp_path / "b.jpg", tmp_path / "deep" / "d.jpg")
    twice = find_inputs([tmp_path / "b.jpg", tmp_path, tmp_path / "b.jpg"])
    assert twice.images == (tmp_path / "b.jpg", tmp_path / "a.PNG")
    for argument, says in (("absent.jpg", "existing file"), ("*.gif", "existing file"), ("empty", "holds none")):
        with pytest.raises(UserError, match=says):
            find_inputs([tmp_path / argument])


def test_the_suffix_says_which_files_are_videos(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "c.mp4", "a.MOV")
    inputs = find_inputs([tmp_path], camera=3)
    assert inputs.images == (tmp_path / "b.jpg",)
    assert inputs.videos == (tmp_path / "a.MOV", tmp_path / "c.mp4")
    assert inputs.camera == 3
    assert find_inputs([], camera=0).camera == 0


def test_a_file_name_with_brackets_is_a_file_first(tmp_path: Path) -> None:
    touch(tmp_path, "photo[1].jpg")
    assert find_inputs([tmp_path / "photo[1].jpg"]).images == (tmp_path / "photo[1].jpg",)
