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
from full_disk import full_after
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


def test_a_title_that_is_no_utf8_is_no_obstacle(tmp_path: Path, clip: Path) -> None:
    with av.open(str(clip)) as source, av.open(str(tmp_path / "titled.mkv"), "w") as container:
        container.metadata["title"] = "title of 20 letters."
        track = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = track
                container.mux(packet)
    content = (tmp_path / "titled.mkv").read_bytes()
    assert b"title of 20" in content
    (tmp_path / "titled.mkv").write_bytes(content.replace(b"title of 20", b"title \xe1\xff 20"))
    with open_video(tmp_path / "titled.mkv") as reader:
        assert len(list(reader)) == 12


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


def test_a_camera_runs_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, red_box: Any) -> None:
    """FFmpeg's endless test image instead of a camera."""
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


@pytest.mark.slow
def test_the_command_line_starts_without_pyav() -> None:
    code = "import sys, smnas.cli.main, smnas.inference.detect; print('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_drawn_video_never_replaces_the_original(clip: Path, red_box: Any) -> None:
    before = clip.read_bytes()
    with pytest.raises(UserError, match="must not replace"):
        detect_inputs(red_box, Inputs(videos=(clip,)), out_dir=clip.parent)
    assert clip.read_bytes() == before


def stream(
    path: Path, count: int = 12, size: tuple[int, int] = (192, 128), codec: str = "mpeg2video", start: int = 0
) -> Path:
    """A stream at 25 frames a second without a header that would count its frames; its clock begins at ``start``."""
    with av.open(f"file:{path}", "w") as container:
        track = container.add_stream(codec, rate=25)
        track.width, track.height = size
        track.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(count):
            frame = av.VideoFrame.from_image(Image.new("RGB", size, (255, 0, 0) if index % 2 else (128, 128, 128)))
            frame.pts, frame.time_base = start + index, Fraction(1, 25)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return path


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize("suffix", [".ts", ".mpg"])
@pytest.mark.parametrize("starts", [(0, 0), (25_000, 0), (1_000_000, 100, 0)])
def test_the_times_of_a_joined_stream_continue(
    tmp_path: Path, red_box: Any, suffix: str, starts: tuple[int, ...]
) -> None:
    parts = [stream(tmp_path / f"{start}-{index}{suffix}", start=start) for index, start in enumerate(starts)]
    with open_video(joined(tmp_path / f"joined{suffix}", *parts)) as reader:
        times = [frame.time_s for frame in reader]
        assert reader.problem is None
    count = 12 * len(starts)
    assert times == pytest.approx([index / 25 for index in range(count)], abs=0.05)
    assert times == sorted(times)
    report = detect_inputs(red_box, Inputs(videos=(tmp_path / f"joined{suffix}",)), out_dir=tmp_path / "drawn")
    assert report.errors == ()
    drawn = report.videos[0].drawn
    assert drawn is not None
    with open_video(drawn) as reader:
        assert [frame.time_s for frame in reader] == pytest.approx(times, abs=1e-3)


def test_real_damage_of_a_joined_stream_is_still_told_apart(tmp_path: Path) -> None:
    whole = stream(tmp_path / "whole.ts", 100)
    content = bytearray(stream(tmp_path / "damaged.ts", 100).read_bytes())
    del content[188 * 30 : 188 * 32]  # packets lost on the way
    (tmp_path / "damaged.ts").write_bytes(content)
    with open_video(joined(tmp_path / "joined.ts", tmp_path / "damaged.ts", whole)) as reader:
        assert len(list(reader)) > 150
        assert "damaged" in str(reader.problem)


WHOLE = [
    (".mp4", "libx264", {"bf": "3"}, False),
    (".mkv", "libx264", {"bf": "3"}, True),
    (".ts", "libx264", {"bf": "3"}, True),
    (".flv", "libx264", {}, True),
    (".avi", "mpeg4", {"bf": "2"}, False),
    (".mp4", "mpeg4", {"bf": "2"}, True),
    (".webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}, False),
    (".webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16"}, False),
    (".mkv", "mpeg2video", {"flags": "+ildct+ilme"}, False),
    (".mp4", "libx265", {"x265-params": "log-level=none"}, False),
]


@pytest.mark.parametrize(("suffix", "codec", "options", "sound"), WHOLE)
def test_a_whole_file_has_lost_nothing(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str], sound: bool
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"FFmpeg is built without {codec}")
    path = encoded(tmp_path / f"whole{suffix}", codec, options, sound=sound)
    with open_video(path) as reader:
        assert len(list(reader)) == 30
        assert reader.problem is None


def encoded(path: Path, codec: str, options: dict[str, str], *, sound: bool = False) -> Path:
    """30 frames of noise that moves, with sound that is a second longer."""
    noise = np.random.default_rng(1).integers(0, 255, (96, 400, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        track = container.add_stream(codec, rate=25, options=options)
        track.width, track.height, track.pix_fmt = 128, 96, "yuv420p"
        voice = container.add_stream("aac", rate=8000) if sound else None
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(noise[:, 5 * index : 5 * index + 128]))
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
        if voice is not None:
            for index in range(18):
                audio = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                audio.sample_rate, audio.pts, audio.time_base = 8000, 1024 * index, Fraction(1, 8000)
                container.mux(voice.encode(audio))
            container.mux(voice.encode(None))
    return path


def test_frames_hidden_by_an_edit_are_not_lost(tmp_path: Path) -> None:
    whole, edited = encoded(tmp_path / "whole.mp4", "libx264", {}), tmp_path / "edited.mp4"
    with av.open(str(whole)) as source, av.open(str(edited), "w") as container:
        track = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                for name in ("pts", "dts"):
                    setattr(packet, name, getattr(packet, name) - 12 * packet.duration)
                packet.stream = track
                container.mux(packet)
    with open_video(edited) as reader:
        assert len(list(reader)) == 18
        assert reader.problem is None


@pytest.mark.parametrize(("suffix", "options"), [(".mp4", {}), (".mkv", {"bf": "2"})])
def test_frames_lost_in_the_middle_are_counted(
    tmp_path: Path, red_box: Any, suffix: str, options: dict[str, str]
) -> None:
    path = encoded(tmp_path / f"whole{suffix}", "libx264", {"g": "60", **options})
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for body in packets[20:23]:
        start, size = content.index(body), len(body)
        filler = (size - 4).to_bytes(4, "big") + b"\x0c" + b"\xff" * (size - 6) + b"\x80"  # says nothing, as H.264 may
        content[start : start + size] = filler
    path.write_bytes(content)
    (video,) = detect_inputs(red_box, Inputs(videos=(path,))).videos
    assert video.count == 27
    assert str(video.error).endswith(", frames lost: 3)")


@pytest.mark.parametrize("suffix", [".mkv", ".flv"])
def test_a_file_that_ends_before_its_stated_length_says_how_many_frames_it_lacks(tmp_path: Path, suffix: str) -> None:
    path = encoded(tmp_path / f"whole{suffix}", "libx264", {})
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    content = path.read_bytes()
    path.write_bytes(content[: content.index(packets[19]) + len(packets[19])])
    with open_video(path) as reader:
        assert len(list(reader)) == 20
        assert "frames lost: 10)" in str(reader.problem)


def test_a_pause_between_frames_is_no_new_clock(clip: Path) -> None:
    with open_video(clip) as reader:
        assert [frame.time_s for frame in reader] == pytest.approx(TIMES)


@pytest.mark.parametrize(("suffix", "codec"), [(".ts", "mpeg2video"), (".mjpeg", "mjpeg")])
@pytest.mark.parametrize("sizes", [((192, 128), (96, 128)), ((64, 64), (160, 32), (64, 64))])
def test_frames_of_several_sizes(
    tmp_path: Path, red_box: Any, suffix: str, codec: str, sizes: tuple[tuple[int, int], ...]
) -> None:
    parts = [stream(tmp_path / f"{index}{suffix}", 6, size, codec) for index, size in enumerate(sizes)]
    path = joined(tmp_path / f"joined{suffix}", *parts)
    report = detect_inputs(red_box, Inputs(videos=(path,)), DetectOptions(0.6), out_dir=tmp_path / "drawn")
    (video,) = report.videos
    assert (video.error, video.count) == (None, 6 * len(sizes))
    assert [(frame.width, frame.height) for frame in video.frames] == [size for size in sizes for _ in range(6)]
    for frame, (width, height) in ((one, (one.width, one.height)) for one in video.frames if one.detections):
        assert frame.detections[0].box == pytest.approx((0, 0, width, height), abs=2)
    assert (video.width, video.height) == sizes[0]
    assert all(f"{one[0]}x{one[1]}" in str(video.remark) for one in sizes[:2])
    assert report.to_dict()["videos"][0]["frames"][-1]["width"] == sizes[-1][0]
    assert video.drawn is not None
    with open_video(video.drawn) as reader:
        copies = [pixels_of(frame) for frame in reader]
    assert {one.shape[:2] for one in copies} == {sizes[0][::-1]}
    other = copies[7]
    middle = other[other.shape[0] // 2, other.shape[1] // 2]
    assert middle[0] > 100  # the image in the middle
    assert (other[2, 2] < 40).all()  # fitted into the first size, with black around it


def test_progress_beyond_an_estimate_names_no_total(tmp_path: Path, red_box: Any) -> None:
    part = stream(tmp_path / "part.ts")
    totals: list[tuple[int, int | None]] = []
    for limit in (None, 20):
        totals.clear()
        detect_inputs(
            red_box,
            Inputs(videos=(joined(tmp_path / "joined.ts", part, part),)),
            max_frames=limit,
            on_frame=lambda frame, source, total: totals.append((frame.frame + 1, total)),
        )
        assert len(totals) == (limit or 24)
        assert all(total is None or done <= total for done, total in totals)
        assert totals[-1][1] == limit


NAMES = [
    "2024-11-02T14:03:05.mp4",
    "cam:1:2.mp4",
    "pipe:0.mp4",
    "x%03d.mp4",
    "a?b#c&d.mp4",
    " spaces and 'quotes'.mp4",
    "-i.mp4",
    "файл é 鱼.mp4",
    "line\nbreak.mp4",
    "[1].mp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_file_name_is_read_and_drawn(
    clip: Path, tmp_path: Path, red_box: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(clip.read_bytes())
    (tmp_path / "out:1").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / name, Path(name)):
        report = detect_inputs(red_box, Inputs(videos=(path,)), DetectOptions(0.6), out_dir=tmp_path / "out:1")
        assert (report.errors, report.videos[0].count) == ((), 12)
    assert [path.name for path in (tmp_path / "out:1").iterdir()] == [name]
    with open_video(tmp_path / "out:1" / name) as reader:
        assert len(list(reader)) == 12


@pytest.mark.parametrize("room", [100, 5_000, 40_000])
def test_a_full_disk_leaves_no_half_video_and_names_the_file(tmp_path: Path, room: int) -> None:
    """Whether the disk is full at the first frame, in the middle or at the end."""
    path = tmp_path / "drawn.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (40, 128, 128, 3), dtype=np.uint8)

    def write() -> None:
        with full_after(room), VideoWriter(path, 25) as writer:
            for index, pixels in enumerate(noise):
                writer.write(Image.fromarray(pixels), index / 25)

    for before in (None, b"an older copy"):
        if before:
            path.write_bytes(before)
        with pytest.raises(OSError, match=r"drawn\.mp4 can not be written"):
            write()
        assert [one.name for one in tmp_path.iterdir()] == (["drawn.mp4"] if before else [])
        assert not before or path.read_bytes() == before


def test_a_full_disk_is_named_before_the_work(clip: Path, tmp_path: Path, red_box: Any) -> None:
    with full_after(1000), pytest.raises(UserError, match=r"drawn copies need a folder.*out"):
        detect_inputs(red_box, Inputs(videos=(clip,)), out_dir=tmp_path / "out")
    assert red_box.batches == []
