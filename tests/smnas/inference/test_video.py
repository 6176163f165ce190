"""Videos: every frame at its time and the right way up, drawn copies that play, and one line for what is broken."""

import struct
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from profiler.errors import BackendUnavailableError, UserError
from smnas.inference import video as video_module
from smnas.inference.detect import detect_inputs
from smnas.inference.inputs import Inputs
from smnas.inference.pipeline import DetectOptions
from smnas.inference.video import VideoError, VideoFrame, VideoWriter, open_camera, open_video

TIMES = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5]


def pixels_of(frame: VideoFrame) -> NDArray[np.uint8]:
    return np.asarray(frame.decoded().image)


def test_every_frame_has_its_index_and_time(clip: Path) -> None:
    with open_video(clip) as reader:
        assert reader.frames == 12
        frames = list(reader)
        assert reader.problem is None
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.time_s for frame in frames] == pytest.approx(TIMES)
    for frame in frames:
        pixels = pixels_of(frame)
        assert pixels.shape == (128, 192, 3)
        assert pixels[60, 28 + 8 * frame.index] == pytest.approx((255, 0, 0), abs=30)
        assert pixels[100, 28] == pytest.approx((128, 128, 128), abs=12)


@pytest.mark.parametrize(("batch", "workers"), [(1, 0), (1, 2), (5, 2)])
def test_boxes_follow_the_object(clip: Path, batch: int, workers: int, red_box: Any) -> None:
    seen: list[tuple[int, str, int | None]] = []
    report = detect_inputs(
        red_box,
        Inputs(videos=(clip,)),
        DetectOptions(0.6, batch, workers),
        on_frame=lambda frame, source, total: seen.append((frame.frame, source, total)),
    )
    (video,) = report.videos
    assert (video.source, video.error, video.count, video.width, video.height) == (str(clip), None, 12, 192, 128)
    assert video.found == {"red": 12}
    assert [frame.time_s for frame in video.frames] == pytest.approx(TIMES)
    for index, frame in enumerate(video.frames):
        assert frame.detections[0].box == pytest.approx((8 + 8 * index, 40, 48 + 8 * index, 80), abs=4)
    assert seen == [(index, str(clip), 12) for index in range(12)]
    assert report.times.images == 12
    assert report.to_dict()["videos"][0]["frames"][7]["detections"][0]["name"] == "red"


def test_a_drawn_video_plays_at_the_same_times(clip: Path, tmp_path: Path, red_box: Any) -> None:
    report = detect_inputs(red_box, Inputs(videos=(clip,)), DetectOptions(0.6), out_dir=tmp_path / "drawn")
    drawn = report.videos[0].drawn
    assert drawn == tmp_path / "drawn" / "clip.mp4"
    with open_video(drawn) as reader, open_video(clip) as original:
        pairs = list(zip(reader, original, strict=True))
    assert [copy.time_s for copy, _ in pairs] == pytest.approx(TIMES, abs=1e-3)
    differences = [np.abs(pixels_of(copy).astype(int) - pixels_of(source)).max(2) for copy, source in pairs]
    for difference in differences:
        assert (difference > 60).mean() > 0.01  # the box and its label
        assert np.median(difference) < 12  # all else is as it was


def test_frames_can_be_limited_and_need_not_be_kept(clip: Path, red_box: Any) -> None:
    report = detect_inputs(red_box, Inputs(videos=(clip,)), DetectOptions(0.6, 2), max_frames=5, keep_frames=False)
    (video,) = report.videos
    assert (video.count, video.frames, dict(video.found)) == (5, (), {"red": 5})


def test_a_size_with_odd_sides_is_written(tmp_path: Path, red_image: Callable[..., Image.Image]) -> None:
    with VideoWriter(tmp_path / "odd.mp4", 29.97) as writer:
        for index in range(3):
            writer.write(red_image(95, 61, (10, 10, 50, 50)), index / 29.97)
    with open_video(tmp_path / "odd.mp4") as reader:
        pixels = [pixels_of(frame) for frame in reader]
    assert [one.shape for one in pixels] == [(62, 96, 3)] * 3
    assert pixels[2][30, 30] == pytest.approx((255, 0, 0), abs=30)


def test_nothing_written_is_no_file(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "none.mp4", 25):
        pass
    assert not (tmp_path / "none.mp4").exists()


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((0, -1, 1, 0), 1), ((-1, 0, 0, -1), 2)])
def test_a_video_is_turned_as_its_header_says(
    clip: Path, tmp_path: Path, matrix: tuple[int, int, int, int], turns: int
) -> None:
    """By the ISO base media format the header's matrix (a b u, c d v, x y w) maps a pixel to (ax + cy, bx + dy)."""
    content = bytearray(clip.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    start = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(content)
    with open_video(turned) as reader, open_video(clip) as original:
        for copy, source in zip(reader, original, strict=True):
            np.testing.assert_array_equal(pixels_of(copy), np.rot90(pixels_of(source), turns))


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_what_is_no_video_is_one_line_and_the_others_go_on(
    clip: Path, tmp_path: Path, red_box: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    content = clip.read_bytes()
    (tmp_path / "text.mp4").write_text("this is a text file\n" * 100)
    (tmp_path / "empty.mov").write_bytes(b"")
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    sound_only(tmp_path / "sound.mp4")
    names = ("text.mp4", "empty.mov", "cut.mp4", "sound.mp4", "gone.mp4")
    report = detect_inputs(red_box, Inputs(videos=(*(tmp_path / name for name in names), clip)), DetectOptions(0.6))
    *broken, whole = report.videos
    assert [name in str(video.error) for name, video in zip(names, broken, strict=True)] == [True] * 5
    assert not any("\n" in error for error in report.errors)
    assert (whole.error, whole.count) == (None, 12)
    assert len(report.errors) == 5
    assert capfd.readouterr() == ("", "")


def test_damage_in_the_middle_costs_what_is_damaged(damaged_clip: Path, tmp_path: Path, red_box: Any) -> None:
    report = detect_inputs(red_box, Inputs(videos=(damaged_clip,)), DetectOptions(0.6), out_dir=tmp_path / "out")
    (video,) = report.videos
    assert 6 <= video.count < 12
    assert "damaged" in str(video.error)
    assert video.frames[5].detections[0].box == pytest.approx((48, 40, 88, 80), abs=4)
    assert video.drawn is not None
    assert video.drawn.is_file()


def test_a_camera_that_is_not_there() -> None:
    with pytest.raises(VideoError, match=r"camera.*987") as caught:
        open_camera(987)
    assert "\n" not in str(caught.value)


def test_a_camera_goes_on_until_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, red_box: Any) -> None:
    """FFmpeg's endless test image in place of a camera."""
    monkeypatch.setattr(video_module, "_camera", lambda index: ("testsrc=size=160x120:rate=10", "lavfi"))
    report = detect_inputs(red_box, Inputs(camera=0), DetectOptions(0.0), max_frames=7, out_dir=tmp_path)
    (video,) = report.videos
    assert (video.source, video.count, video.error) == ("camera 0", 7, None)
    assert [frame.time_s for frame in video.frames] == pytest.approx([index / 10 for index in range(7)])
    assert video.drawn == tmp_path / "camera-0.mp4"

    def stop(frame: Any, source: str, total: int | None) -> None:
        assert total is None
        if frame.frame == 4:
            raise KeyboardInterrupt

    report = detect_inputs(red_box, Inputs(camera=0), DetectOptions(0.0), out_dir=tmp_path, on_frame=stop)
    assert report.interrupted
    assert [frame.frame for frame in report.videos[0].frames] == list(range(5))
    with open_video(tmp_path / "camera-0.mp4") as reader:
        assert 5 <= len(list(reader)) <= 10
        assert reader.problem is None


def test_without_pyav_the_fix_is_named(monkeypatch: pytest.MonkeyPatch, clip: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'smnas\[video\]'"):
        open_video(clip)


def test_the_command_line_starts_without_pyav() -> None:
    code = "import sys, smnas.cli.main, smnas.inference.detect; print('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_drawn_video_never_replaces_the_original(clip: Path, red_box: Any) -> None:
    before = clip.read_bytes()
    with pytest.raises(UserError, match="must not replace"):
        detect_inputs(red_box, Inputs(videos=(clip,)), out_dir=clip.parent)
    assert clip.read_bytes() == before
