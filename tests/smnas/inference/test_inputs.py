"""What a command's arguments mean: files, folders and patterns, images and videos apart."""

from pathlib import Path

import pytest
from PIL import Image

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


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a.avif", "a.JP2", "a.tga", "a.pbm", "a.mpo", "a.ico", "a.qoi"])
def test_every_kind_of_image_that_pillow_decodes_is_found(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    inputs = find_inputs([tmp_path])
    assert inputs.images == (tmp_path / name,)
    assert inputs.remark is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "AVIF", "WEBP", "BMP", "TIFF", "TGA", "GIF", "JPEG2000", "PPM"])
def test_what_pillow_writes_is_found_under_each_of_its_suffixes(tmp_path: Path, kind: str) -> None:
    Image.init()
    names = [f"a{suffix}" for suffix, owner in Image.EXTENSION.items() if owner == kind]
    touch(tmp_path, *names)
    assert {path.name for path in find_inputs([tmp_path]).images} == set(names)


@pytest.mark.parametrize(
    "name",
    [f"a{suffix}" for suffix in (".mjpeg", ".h264", ".ASF", ".mjpg", ".264", ".hevc", ".h265", ".ogv", ".vob", ".m2v")]
    + [f"b{suffix}" for suffix in (".mpg", ".mpeg", ".divx", ".rm", ".y4m", ".ivf", ".dv", ".f4v", ".qt", ".mpe")],
)
def test_files_of_videos_are_no_images(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    for argument in (tmp_path, tmp_path / name):
        inputs = find_inputs([argument])
        assert (inputs.images, inputs.videos) == ((), (tmp_path / name,))


def test_what_is_skipped_is_counted_by_kind(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.HEIC", "c.heic", "notes.txt", "README", "._a.png", ".hidden.jpg", ".DS_Store", "d.h5")
    inputs = find_inputs([tmp_path, tmp_path / "notes.txt"])
    assert inputs.images == (tmp_path / "a.png", tmp_path / "notes.txt")  # what is named is taken
    assert inputs.skipped == {"hidden": 3, ".heic": 2, ".txt": 1, "without a suffix": 1, ".h5": 1}
    assert inputs.remark is not None
    for part in ("skipped 8 files", "3 hidden", "2 .heic", "1 .txt", "magick"):
        assert part in inputs.remark
    touch(tmp_path / "photos", "one.heif", "._two.jpg")
    with pytest.raises(UserError, match=r"holds none \(skipped 2 files.*1 \.heif.*magick"):
        find_inputs([tmp_path / "photos"])


def test_a_pattern_in_a_folder_whose_name_is_one(tmp_path: Path) -> None:
    folder = tmp_path / "camera [1]*?"
    folder.mkdir()
    for name in ("a.png", "b.png", ".hidden.png"):
        (folder / name).touch()
    assert find_inputs([folder / "*.png"]).images == (folder / "a.png", folder / "b.png")
