"""``smnas detect``: what it says and writes, with which exit code, whatever the files are."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import onnx
import onnx.helper as oh
import pytest
from full_disk import full_after
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from profiler.errors import UserError
from smnas.cli.main import application
from smnas.cli.terminal.console import Output
from smnas.cli.terminal.exit_codes import run
from smnas.cli.terminal.progress import PhaseSteps
from smnas.data.coco import quiet_pycocotools
from smnas.evaluation.predict import DetectionArrays
from smnas.inference import runtime
from smnas.inference import video as video_module
from smnas.inference.metadata import ModelMetadata
from smnas.inference.model_file import model_file

BOX = (20, 10, 60, 50)


class Corner:
    """A detector of a red corner: one box wherever the canvas is red at BOX's middle."""

    on_gpu = False

    def __init__(self) -> None:
        self.metadata = ModelMetadata("none", ("red",), (7,), 120, 80, "fp32")
        self.classes, self.category_ids, self.input_size = ("red",), (7,), (120, 80)
        self.after_run: Callable[[int], None] = lambda run: None
        self.runs = 0

    def __call__(self, images: NDArray[np.uint8]) -> DetectionArrays:
        self.runs += 1
        self.after_run(self.runs)
        red = ((images[:, 0, 30, 40] > 200) & (images[:, 1, 30, 40] < 60)).astype(np.int64)
        boxes = np.tile(np.array(BOX, np.float32), (len(images), 1, 1))
        return DetectionArrays(
            red, boxes, np.full((len(images), 1), 0.8, np.float32), np.zeros_like(boxes[..., 0], int)
        )


@pytest.fixture
def corner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Corner:
    """In place of the file ``model.onnx``."""
    detector = Corner()
    (tmp_path / "model.onnx").write_bytes(b"")
    monkeypatch.setattr(runtime, "load_model", lambda path, **options: detector)
    monkeypatch.chdir(tmp_path)
    return detector


def image() -> Image.Image:
    image = Image.new("RGB", (120, 80), "gray")
    image.paste((255, 0, 0), BOX)
    return image


def video(path: Path, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 120, 80, "yuv420p", 2_000_000
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_image(image())))
        container.mux(stream.encode(None))


def detect(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, list[str]]:
    capsys.readouterr()
    code = run(application("detect"), "smnas-detect", ["--model", "model.onnx", *map(str, words)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err.splitlines()


def test_images_and_a_video_for_people(corner: Corner, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image().save("one.png")
    video(tmp_path / "clip.mp4", 4)
    code, out, err = detect(capsys, "one.png", "clip.mp4", "--out", "drawn")
    assert code == 0, err
    assert any(line.split() == ["one.png", "red", "0.800", "20", "10", "60", "50"] for line in out.splitlines())
    assert "clip.mp4: 4 frames of 120x80; found in all of them: red 4" in out
    assert "drawn: drawn/one.png" in out
    assert "speed: 5 images in" in out
    for stage in ("decode", "preprocess", "network", "postprocess", "draw"):
        assert stage in out
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["clip.mp4", "one.png"]
    assert any("frames of clip.mp4 4/4" in line for line in err)


def test_one_json_document(corner: Corner, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image().save("one.png")
    video(tmp_path / "clip.mp4", 4)
    code, out, err = detect(capsys, "one.png", "clip.mp4", "--json", "--quiet", "--batch", 3, "--frames", 3)
    assert (code, err) == (0, [])
    document = json.loads(out)
    assert document["images"][0]["detections"][0]["box"] == list(BOX)
    (found,) = document["videos"]
    assert [frame["frame"] for frame in found["frames"]] == [0, 1, 2]
    assert [frame["time_s"] for frame in found["frames"]] == pytest.approx([0, 0.2, 0.4])
    assert found["frames"][2]["detections"][0]["name"] == "red"
    assert document["speed"]["images"] == 4
    assert corner.runs == 2


def test_hostile_files_are_a_line_each_and_the_others_go_on(
    corner: Corner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    image().save(folder / "good.jpg", quality=95)
    (folder / "text.jpg").write_text("text")
    (folder / "empty.jpg").write_bytes(b"")
    content = (folder / "good.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "video.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(500))
    image().save(folder / "anim.gif", save_all=True, append_images=[Image.new("RGB", (120, 80))])
    Image.new("L", (1, 1)).save(folder / "pixel.png")
    Image.new("L", (20_000, 8)).save(folder / "wide.png")
    code, out, err = detect(capsys, folder, "--json")
    assert code == 2
    document = json.loads(out)
    found = {Path(entry["path"]).name: entry for entry in document["images"]}
    assert {name for name, entry in found.items() if entry["error"]} == {"text.jpg", "empty.jpg", "cut.jpg"}
    assert {name for name, entry in found.items() if entry["detections"]} == {"good.jpg", "anim.gif"}
    for name in ("text.jpg", "empty.jpg", "cut.jpg", "video.mp4"):
        assert sum(name in line for line in err[:-1] if "must be" in line) == 1, name
    assert any("anim.gif holds 2 images" in line for line in err)
    assert err[-1].startswith("error: every image and video must be readable, but 4 of 8 are not: ")


def test_a_disk_that_is_full_leaves_no_half_of_a_drawn_image(
    corner: Corner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for name in ("one.jpg", "two.png"):
        Image.fromarray(rng.integers(0, 256, (400, 600, 3), dtype=np.uint8)).save(name)
    with full_after(1 << 16):
        code, out, err = detect(capsys, "one.jpg", "two.png", "--out", "drawn", "--json", "--quiet")
    assert code == 2
    assert err[-1].startswith("error: every image and video must be readable, but 2 of 2 are not: one.jpg")
    assert all("File too large" in entry["error"] for entry in json.loads(out)["images"])
    assert list(Path("drawn").iterdir()) == []


def test_a_single_bad_file_is_one_line(corner: Corner, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.jpg").write_text("text")
    code, out, err = detect(capsys, "text.jpg", "--quiet")
    assert (code, out) == (2, "")
    assert len(err) == 1
    assert err[0].startswith("error: an image must be decodable, but text.jpg is not")
    code, out, _ = detect(capsys, "text.jpg", "--json")
    document = json.loads(out)
    assert (code, document["speed"]["images"]) == (2, 0)
    assert [entry["error"] for entry in document["images"]] == [err[0].removeprefix("error: ")]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "IMAGE... or --camera N"),
        (("--camera", 987), "no camera"),
        (("one.png", "--coco", "found.json"), "need each other"),
        (("one.png", "--annotations", "a.json"), "need each other"),
        (("clip.mp4", "--coco", "found.json", "--annotations", "a.json"), "COCO results are of images"),
        (("one.png", "two.png", "--coco", "found.json", "--annotations", "a.json"), "two.png is not"),
        (("one.png", "--out", "."), "must not replace"),
        (("one.png", "--batch", 0), "--batch"),
        (("gone.mp4",), "gone.mp4"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(
    words: tuple[object, ...], says: str, corner: Corner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image().save("one.png")
    image().save("two.png")
    video(tmp_path / "clip.mp4", 2)
    annotation_file()
    code, out, err = detect(capsys, *words)
    assert (code, out) == (2, "")
    assert len(err) == 1
    assert err[0].startswith("error: ")
    assert says in err[0]
    assert not Path("found.json").exists()


def annotation_file() -> None:
    document = {
        "images": [{"id": 31, "file_name": "one.png", "width": 120, "height": 80}],
        "annotations": [{"id": 1, "image_id": 31, "category_id": 7, "bbox": [20, 10, 40, 40], "area": 1600}],
        "categories": [{"id": 7, "name": "red"}],
    }
    Path("a.json").write_text(json.dumps(document))


def test_coco_results_are_what_pycocotools_loads(
    corner: Corner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image().save("one.png")
    annotation_file()
    code, _, err = detect(capsys, "one.png", "--coco", "found.json", "--annotations", "a.json")
    assert code == 0, err
    with quiet_pycocotools():
        (entry,) = COCO("a.json").loadRes("found.json").anns.values()
    assert (entry["image_id"], entry["category_id"], entry["score"]) == (31, 7, pytest.approx(0.8))
    assert entry["bbox"] == [20, 10, 40, 40]


@pytest.mark.parametrize("kind", ["images", "video"])
def test_ctrl_c_keeps_what_is_finished(
    kind: str, corner: Corner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real signal to this process while the network is at its ninth image."""
    corner.after_run = lambda number: os.kill(os.getpid(), signal.SIGINT) if number == 9 else None
    if kind == "video":
        video(tmp_path / "clip.mp4", 40)
        words: list[str] = ["clip.mp4"]
    else:
        words = [f"{index}.png" for index in range(20)]
        for word in words:
            image().save(word)
    code, out, err = detect(capsys, *words, "--json", "--out", "drawn")
    assert code == 130
    assert err[-1] == "interrupted"
    document = json.loads(out)
    assert document["interrupted"]
    done = document["images"] or document["videos"][0]["frames"]
    assert 3 <= len(done) <= 8
    assert all(one["detections"] for one in done)
    if kind == "video":
        with video_module.open_video(Path("drawn/clip.mp4")) as reader:
            assert len(list(reader)) >= len(done)
            assert reader.problem is None
    else:
        assert {f"{index}.png" for index in range(len(done))} <= {path.name for path in Path("drawn").iterdir()}


def test_a_camera_is_looked_through_until_told(
    corner: Corner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """FFmpeg's endless test image in place of a camera."""
    monkeypatch.setattr(video_module, "_camera", lambda index: ("color=red:size=120x80:rate=10", "lavfi"))
    code, out, err = detect(capsys, "--camera", 0, "--frames", 6)
    assert code == 0, err
    assert "camera 0: 6 frames of 120x80; found in all of them: red 6" in out


def test_a_model_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image().save(tmp_path / "one.png")
    info = oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3])
    graph = oh.make_graph(
        [oh.make_node("Relu", ["x"], ["y"])], "other", [info], [oh.make_tensor_value_info("y", 1, [1, 3])]
    )
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=9), tmp_path / "other.onnx")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "other.onnx").read_bytes()[:40])
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name, says in (("other.onnx", "something else"), ("cut.onnx", "cut off"), ("empty.onnx", "smnas export")):
        code = run(application("detect"), "smnas-detect", ["-m", str(tmp_path / name), str(tmp_path / "one.png")])
        captured = capsys.readouterr()
        assert (code, captured.out) == (2, "")
        (line,) = captured.err.splitlines()
        assert says in line
        assert name in line


def test_the_progress_of_something_endless_has_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Output.open(as_json=False, quiet=False) as output, PhaseSteps(output) as steps:
        steps.step("frames of camera 0", 1, None, "2 objects")
        steps.step("frames of camera 0", 2, None, "2 objects")
        steps.step("images", 1, 1)
    assert capsys.readouterr().err.splitlines() == ["frames of camera 0 1  2 objects", "images 1/1"]


def test_the_folder_of_a_training_stands_for_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds neither ranking\.json nor checkpoint\.pt"):
        model_file(tmp_path)
    (tmp_path / "checkpoint.pt").touch()
    assert model_file(tmp_path) == model_file(tmp_path, prefer="checkpoint") == tmp_path / "checkpoint.pt"


def test_results_that_could_not_be_written_are_refused_before_anything_runs(
    corner: Corner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image().save("one.png")
    Path("file").touch()
    code, out, err = detect(capsys, "one.png", "--coco", "file/found.json", "--annotations", "none.json")
    assert (code, out, len(err), corner.runs) == (2, "", 1, 0)
    assert "COCO results need a folder that can be written to" in err[0]
