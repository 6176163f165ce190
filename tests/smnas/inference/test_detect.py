"""Detection on files: what is found lands where it is in the image, and one bad file stops nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from profiler.errors import UserError
from smnas.inference.detect import detect_inputs
from smnas.inference.inputs import Inputs, find_inputs
from smnas.inference.pipeline import DetectOptions
from smnas.inference.results import ImageResult

BOX = (100, 40, 200, 160)


def test_boxes_are_in_pixels_of_the_image(tmp_path: Path, red_box: Any, red_image: Callable[..., Image.Image]) -> None:
    red_image().save(tmp_path / "one.png")
    report = detect_inputs(red_box, Inputs((tmp_path / "one.png",)))
    (result,) = report.images
    assert (result.width, result.height) == (480, 200)
    red, everything = result.detections
    assert (red.name, red.label, red.category_id) == ("red", 0, 7)
    assert red.box == pytest.approx(BOX, abs=5)  # a pixel of the canvas is five of the image
    assert everything.box == (0, 0, 480, 200)  # clipped to the image
    (surer,) = detect_inputs(red_box, Inputs((tmp_path / "one.png",)), DetectOptions(0.6)).images
    assert [one.name for one in surer.detections] == ["red"]


@pytest.fixture
def hostile(tmp_path: Path, red_image: Callable[..., Image.Image]) -> Path:
    folder = tmp_path / "hostile"
    folder.mkdir()
    red_image().save(folder / "a-good.jpg", quality=95)
    (folder / "b-text.jpg").write_text("this is a text file")
    (folder / "c-empty.png").write_bytes(b"")
    whole = (folder / "a-good.jpg").read_bytes()
    (folder / "d-truncated.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (1, 1), "red").save(folder / "e-pixel.png")
    Image.new("L", (20_000, 30), 200).save(folder / "f-long.png")
    frames = [red_image().convert("P"), Image.new("P", (480, 200))]
    frames[0].save(folder / "g-animated.gif", save_all=True, append_images=frames[1:], duration=50)
    Image.new("1", (20_000, 20_000)).save(folder / "h-huge.png")
    red_image().convert("RGBA").save(folder / "i-good.png")
    red_image().convert("CMYK").save(folder / "j-cmyk.jpg", quality=95)
    (folder / "k-video.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(300))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # stored lying on its left side
    red_image().transpose(Image.Transpose.ROTATE_90).save(folder / "l-turned.jpg", quality=95, exif=exif)
    Image.new("I;16", (40, 30), 40_000).save(folder / "m-deep.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "workers"), [(1, 0), (4, 2)])
def test_one_bad_file_stops_nothing(hostile: Path, tmp_path: Path, batch: int, workers: int, red_box: Any) -> None:
    seen: list[tuple[str, int, int]] = []
    inputs = find_inputs([hostile])
    report = detect_inputs(
        red_box,
        inputs,
        DetectOptions(0.6, batch, workers),
        out_dir=tmp_path / "drawn",
        on_image=lambda result, done, total: seen.append((result.path.name, done, total)),
    )
    by_name = {result.path.name: result for result in report.images}
    assert [name for name, *_ in seen] == sorted(by_name)
    assert seen[-1][1:] == (12, 12)
    failed = {name: result.error for name, result in by_name.items() if result.error is not None}
    assert set(failed) == {"b-text.jpg", "c-empty.png", "d-truncated.jpg", "h-huge.png"}
    for name, error in failed.items():
        assert "\n" not in error
        assert name in error
        assert not by_name[name].detections
    assert by_name["e-pixel.png"].width == 1
    assert by_name["f-long.png"].width == 20_000
    assert (by_name["m-deep.png"].width, by_name["m-deep.png"].height) == (40, 30)
    for name in ("a-good.jpg", "g-animated.gif", "i-good.png", "j-cmyk.jpg", "l-turned.jpg"):
        assert by_name[name].detections[0].box == pytest.approx(BOX, abs=6), name
    assert {name for name, result in by_name.items() if result.remark} == {"g-animated.gif"}
    assert "2 images, of which the first" in str(by_name["g-animated.gif"].remark)
    (video,) = report.videos
    assert "k-video.mp4" in str(video.error)
    assert len(report.errors) == 5
    drawn = {path.name for path in (tmp_path / "drawn").iterdir()}
    stems = ("a-good.jpg", "e-pixel.png", "f-long.png", "g-animated.png", "i-good.png", "j-cmyk.jpg", "l-turned.jpg")
    assert drawn == {*stems, "m-deep.png"}
    with Image.open(tmp_path / "drawn" / "f-long.png") as image:
        assert image.size == (20_000, 30)


@pytest.mark.slow
def test_the_report_is_plain_json(hostile: Path, red_box: Any) -> None:
    report = detect_inputs(red_box, find_inputs([hostile / "[ab]-*.jpg"]), DetectOptions(0.6))
    document = json.loads(json.dumps(report.to_dict()))
    good, bad = document["images"]
    assert good["detections"][0]["name"] == "red"
    assert good["detections"][0]["category_id"] == 7
    assert len(good["detections"][0]["box"]) == 4
    assert (good["error"], bad["detections"]) == (None, [])
    speed = document["speed"]
    assert speed["images"] == 1
    assert speed["images_per_s"] == pytest.approx(1 / speed["wall_s"])
    assert set(speed["ms_per_image"]) == {"decode", "preprocess", "network", "postprocess", "draw"}
    assert speed["ms_per_image"]["draw"] == 0 < speed["ms_per_image"]["network"]


def test_in_turn_the_stages_fill_the_wall_time(
    tmp_path: Path, red_box: Any, red_image: Callable[..., Image.Image]
) -> None:
    for index in range(6):
        red_image(900, 700).save(tmp_path / f"{index}.png")
    times = detect_inputs(red_box, find_inputs([tmp_path]), DetectOptions(workers=0), out_dir=tmp_path / "out").times
    stages = sum(times.ms_per_image().values()) * times.images / 1e3
    assert 0.5 * times.wall_s < stages <= times.wall_s


def test_drawn_copies_of_one_name_do_not_overwrite_each_other(
    tmp_path: Path, red_box: Any, red_image: Callable[..., Image.Image]
) -> None:
    paths = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "same.png")
        red_image().save(paths[-1])
    report = detect_inputs(red_box, Inputs(tuple(paths)), out_dir=tmp_path / "drawn")
    assert [r.drawn.name for r in report.images if r.drawn] == ["same.png", "same-2.png"]
    assert all(r.drawn is not None and r.drawn.is_file() for r in report.images)


def test_an_output_that_can_not_be_is_refused(
    tmp_path: Path, red_box: Any, red_image: Callable[..., Image.Image]
) -> None:
    (tmp_path / "drawn").write_text("")
    with pytest.raises(UserError, match="folder that can be written to"):
        detect_inputs(red_box, Inputs(), out_dir=tmp_path / "drawn")
    red_image().save(tmp_path / "one.png")
    before = (tmp_path / "one.png").read_bytes()
    with pytest.raises(UserError, match="must not replace"):
        detect_inputs(red_box, Inputs((tmp_path / "one.png",)), out_dir=tmp_path)
    assert (tmp_path / "one.png").read_bytes() == before


def test_an_interruption_keeps_what_is_finished(
    tmp_path: Path, red_box: Any, red_image: Callable[..., Image.Image]
) -> None:
    for index in range(8):
        red_image().save(tmp_path / f"{index}.png")

    def stop(result: ImageResult, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    report = detect_inputs(
        red_box, find_inputs([tmp_path]), DetectOptions(0.6), out_dir=tmp_path / "drawn", on_image=stop
    )
    assert report.interrupted
    assert [image.path.name for image in report.images] == ["0.png", "1.png", "2.png"]
    assert all(len(image.detections) == 1 and image.drawn for image in report.images)
    assert report.to_dict()["interrupted"] is True
