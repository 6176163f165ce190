"""What commands say about data: before hours of training, in one line, with the number."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import search_stub as stub
from PIL import Image

from profiler.errors import UserError
from smnas import api
from smnas.api import searches
from smnas.cli.main import COMMANDS, application
from smnas.cli.terminal.exit_codes import run
from smnas.data.coco import CocoFolder
from smnas.scoring.base import ScoringFailedError
from smnas.scoring.trained_ap import TrainedAP
from smnas.search.study.settings import data_facts, prepare_run_folder
from smnas.space.architecture import Architecture
from smnas.training.recipe import load_recipe

ARCH = "basicblock_16_1-21-21+fpn_2-4_48+norpn+fcos_48_2+64x64"


def write_data(root: Path, boxes: list[list[float]], size: tuple[int, int] = (640, 480), copies: int = 4) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / split).mkdir()
        images = [
            {"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]}
            for number in range(copies)
        ]
        for image in images:
            Image.new("RGB", size).save(root / split / str(image["file_name"]))
        annotations = [
            {"id": 0, "image_id": number, "category_id": 1, "bbox": box} for number in range(copies) for box in boxes
        ]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "fish"}]}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What training began; each one ends at once."""
    began: list[str] = []

    def score(self: TrainedAP, architecture: Any, **_: Any) -> Any:
        began.append(str(architecture))
        raise UserError("stopped here")

    monkeypatch.setattr(TrainedAP, "score_final", score)
    return began


def train(capsys: pytest.CaptureFixture[str], data: Path, *words: str) -> tuple[int, list[str]]:
    words = ("train", "--arch", ARCH, "--data", str(data), "--out", str(data / "out"), *words)
    code = run(application(*COMMANDS), "smnas", words)
    err = capsys.readouterr().err.splitlines()
    assert code == 2, err
    return code, err


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        ([[10, 10, 15, 200]], "at 64x64 none of the 4 boxes"),
        ([[10, 10, 15, 15], [300, 200, 200, 19]], "at 64x64 none of the 8 boxes"),
        ([[0.1, 0.2, 0.5, 0.5], [0, 0, 1, 1]], "within 0..1"),
    ],
)
def test_training_on_nothing_is_refused_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], begun: list[str], boxes: list[list[float]], says: str
) -> None:
    code, err = train(capsys, write_data(tmp_path / "data", boxes))
    assert (code, begun) == (2, [])
    assert says in err[-1]
    assert not (tmp_path / "data" / "out").exists()


def test_a_fraction_of_boxes_that_vanishes_is_one_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], begun: list[str]
) -> None:
    data = write_data(tmp_path / "data", [[10, 10, 15, 200], [10, 10, 200, 200], [0, 0, 640, 480]])
    code, err = train(capsys, data)
    assert (code, begun) == (2, [ARCH])
    assert [line for line in err if "left out" in line] == [
        "at 64x64 33.3% of the boxes to train on (4 of 12) are left out: under 2 pixels a side"
    ]
    code, err = train(capsys, write_data(tmp_path / "large", [[10, 10, 200, 200]]))
    assert not any("left out" in line for line in err)


def test_a_cut_off_image_is_refused_or_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], begun: list[str]
) -> None:
    data = write_data(tmp_path / "data", [[10, 10, 200, 200]])
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data / "val" / "2.png", "JPEG")
    (data / "val" / "2.png").write_bytes((data / "val" / "2.png").read_bytes()[:5000])
    code, err = train(capsys, data)
    assert (code, begun) == (2, [])
    assert "2.png" in err[-1]
    code, err = train(capsys, data, "--drop-bad-images")
    assert (code, begun) == (2, [ARCH])
    assert any(line.startswith("left out 1 images of") for line in err)


def search(capsys: pytest.CaptureFixture[str], data: Path, space: str, *words: str) -> tuple[int, list[str]]:
    code = run(
        application(*COMMANDS),
        "smnas",
        ["search", "--data", str(data), "--preset", space, "--out", str(data / "run"), *words],
    )
    return code, capsys.readouterr().err.splitlines()


def test_a_search_whose_boxes_all_vanish_is_refused_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], begun: list[str]
) -> None:
    code, err = search(capsys, write_data(tmp_path / "data", [[10, 10, 3, 200]]), "nano")
    assert (code, begun) == (2, [])
    assert "none of the 4 boxes" in err[-1]
    assert not (tmp_path / "data" / "run" / "settings.json").exists()
    assert not (tmp_path / "data" / "run" / "study.db").exists()


def test_a_candidate_whose_input_leaves_no_box_fails_with_its_reason_before_it_is_trained(tmp_path: Path) -> None:
    folder = CocoFolder(write_data(tmp_path / "data", [[10, 10, 15, 200]]))
    scorer = TrainedAP(folder, load_recipe("nano"))
    with pytest.raises(ScoringFailedError, match="no training box is 2 pixels wide and high on an input of 64x64"):
        scorer.score(Architecture.parse(ARCH), seed=0, epochs=1, out_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert folder.split("train").boxes_left(96, 96) == (4, 4), "on a larger input it trains"


def test_a_report_of_a_run_with_bad_images_opens_them_as_the_search_did(tmp_path: Path) -> None:
    data, run = write_data(tmp_path / "data", [[10, 10, 200, 200]]), tmp_path / "run"
    (data / "val" / "1.png").unlink()
    folder = CocoFolder(data, drop_bad_images=True)
    prepare_run_folder(run, stub.settings(data=data_facts(folder, run)))
    assert api.report(run, data=data).is_file()
    prepare_run_folder(tmp_path / "strict", stub.settings())
    with pytest.raises(UserError, match=r"1\.png"):
        api.report(tmp_path / "strict", data=data)


def test_a_run_resumes_without_data_where_they_were_last_and_refuses_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> Any:
        raise UserError("stopped here")

    monkeypatch.setattr(searches, "_calibrated", stop)
    given = tmp_path / "images"
    inside = write_data(tmp_path / "run" / "data", [[10, 10, 200, 200]])  # images of one's own in the run folder

    def search(out: Path, *words: str) -> str:
        code = run(application(*COMMANDS), "smnas", ["search", "--preset", "nano", "--out", str(out), *words])
        assert code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "stopped here" in search(tmp_path / "run", "--data", str(inside))
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["data"]["root"] == "data"
    assert "stopped here" in search((tmp_path / "run").rename(tmp_path / "moved"))
    write_data(given, [[10, 10, 200, 200]])
    assert "stopped here" in search(tmp_path / "moved", "--data", str(given))
    assert "stopped here" in search(tmp_path / "moved")
    write_data(tmp_path / "others", [[10, 10, 200, 100]])
    assert "other boxes, or classes of boxes, on training images" in search(
        tmp_path / "moved", "--data", str(tmp_path / "others")
    )
    given.rename(tmp_path / "gone")
    (tmp_path / "moved" / "data").rename(tmp_path / "gone-too")
    assert "there is no folder" in search(tmp_path / "moved")
    assert not (tmp_path / "moved" / "data").exists(), "nothing is generated instead"
