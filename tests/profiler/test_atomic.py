"""Files written whole: what ``open`` would leave, without a moment at which half of it is there."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from full_disk import full_after

from profiler.atomic import write_atomic


@pytest.fixture(params=[0o022, 0o077, 0o002, 0o027])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    try:
        yield request.param
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_follows_the_umask_as_open_does(tmp_path: Path, umask: int) -> None:
    write_atomic(tmp_path / "deep" / "new.onnx", b"content")
    (tmp_path / "opened").write_bytes(b"content")
    assert mode(tmp_path / "deep" / "new.onnx") == mode(tmp_path / "opened") == 0o666 & ~umask


@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o664, 0o444, 0o755])
def test_an_existing_file_keeps_its_mode(tmp_path: Path, permissions: int) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(b"old")
    path.chmod(permissions)
    write_atomic(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", permissions)
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_what_is_no_regular_file_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(tmp_path / "pipe", b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)


def test_the_longest_name_that_a_folder_takes(tmp_path: Path) -> None:
    write_atomic(tmp_path / ("n" * 255), b"content")
    assert (tmp_path / ("n" * 255)).read_bytes() == b"content"


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with full_after(1000), pytest.raises(OSError, match=r"model\.onnx"):
        write_atomic(path, bytes(100_000))
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"old"


def test_a_file_name_that_is_no_utf8_can_be_written_about(tmp_path: Path) -> None:
    write_atomic(tmp_path / "page.html", "<p>im\udcffages é</p>")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "<p>im\\udcffages é</p>"
