"""Checkpoint files: round trips, atomic replacement, and every kind of bad file as one line for the user."""

import json
import pickle
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from curves import read_curve
from full_disk import full_after
from hypothesis import given
from hypothesis import strategies as st

from profiler.atomic import replace_atomic, write_atomic
from profiler.errors import UserError
from smnas.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointInfo,
    load_checkpoint,
    record_metrics,
    require_same_run,
    save_checkpoint,
)
from smnas.training.curve import EpochLog, append_curve, write_curve
from smnas.training.recipe import load_recipe

LOG = EpochLog(1, 2, 1.5, {"box": 1.0, "class": 0.5}, 0.01, 120.0, 3.5, 3.5, 800.0)


@pytest.fixture
def checkpoint() -> Checkpoint:
    info = CheckpointInfo(
        architecture="basicblock_16_11-21-21+fpn_2-4_32+rpn+rcnn_64+64x64",
        classes=("jelly fish", "ray"),
        category_ids=(3, 7),
        norm="gn-ws",
        stem="deep",
        recipe=load_recipe("nano").with_(scale_jitter=(0.8, 1.2)),
        seed=12,
        train_images=40,
        epoch=1,
    )
    momentum = {"state": {0: {"momentum_buffer": torch.rand(2, 3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return Checkpoint(
        info, {"w": torch.rand(2, 3), "n": torch.tensor(4)}, {"w": torch.rand(2, 3)}, momentum, {}, (LOG,)
    )


OTHERS = {
    "architecture": "basicblock_16_11-21-21+fpn_2-4_32+rpn+rcnn_32+64x64",
    "classes": ("ray", "jelly fish"),
    "category_ids": (3, 8),
    "norm": "bn",
    "stem": "imagenet",
    "recipe": load_recipe("nano").with_(scale_jitter=(0.8, 1.2), batch_size=3),
    "seed": 13,
    "train_images": 41,
    "pretrained": "0123456789",
}


@pytest.mark.parametrize("setting", OTHERS)
def test_another_setting_is_another_run(checkpoint: Checkpoint, setting: str) -> None:
    other = replace(checkpoint.info, **{setting: OTHERS[setting]})
    with pytest.raises(CheckpointError, match=f"was trained with {setting}"):
        require_same_run(checkpoint.info, other, Path("checkpoint.pt"))


DATA = {"train_images": 40, "train_boxes": 90, "train_digest": "a-b", "val_images": 8, "val_digest": "c-d"}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"train_boxes": 91}, "91 training boxes instead of 90"),
        ({"train_digest": "a-x"}, "other boxes, or classes of boxes, on training images"),
        ({"val_images": 9, "val_digest": "x-d"}, "9 validation images instead of 8"),
        ({"val_digest": "x-d"}, "other names or sizes of validation images"),
    ],
)
def test_another_data_set_is_another_run(checkpoint: Checkpoint, other: dict[str, object], says: str) -> None:
    known, path = replace(checkpoint.info, data=DATA), Path("checkpoint.pt")
    with pytest.raises(CheckpointError, match=f"was trained on another data set, but got {says}; choose another"):
        require_same_run(known, replace(known, data={**DATA, **other}), path)
    require_same_run(known, known, path)
    require_same_run(checkpoint.info, known, path)  # an earlier version knew the training images' number alone


def test_how_far_a_run_is_and_what_wrote_it_is_no_other_run(checkpoint: Checkpoint) -> None:
    renamed = checkpoint.info.recipe.with_(name="mine")
    later = replace(
        checkpoint.info,
        epoch=9,
        decay_from=8,
        stop_reason="it is good",
        metrics={"ap": 0.5},
        versions={"torch": "9"},
        recipe=renamed,
        started_from="a",
    )
    require_same_run(checkpoint.info, later, Path("checkpoint.pt"))
    settings = {field.name for field in fields(CheckpointInfo)} - {
        "epoch",
        "metrics",
        "versions",
        "data",
        "started_from",
        "decay_from",
        "stop_reason",
    }
    assert settings == set(OTHERS), "every setting is looked at above"


def test_a_round_trip_keeps_everything(tmp_path: Path, checkpoint: Checkpoint) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, checkpoint)
    read = load_checkpoint(path)
    assert read.info == checkpoint.info
    assert read.info.num_classes == 2
    assert not read.info.complete
    assert read.history == (LOG,)
    assert read.model.keys() == checkpoint.model.keys()
    assert all(torch.equal(read.model[key], checkpoint.model[key]) for key in read.model)
    assert torch.equal(read.average["w"], checkpoint.average["w"])
    assert torch.equal(
        read.optimizer["state"][0]["momentum_buffer"], checkpoint.optimizer["state"][0]["momentum_buffer"]
    )
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_versions_that_wrote_a_file_are_in_it(checkpoint: Checkpoint) -> None:
    assert torch.__version__.split("+")[0] == checkpoint.info.versions["torch"].split("+")[0]
    assert set(checkpoint.info.versions) == {"smnas", "torch", "torchvision", "numpy"}


def test_metrics_are_added_and_nothing_else_changes(tmp_path: Path, checkpoint: Checkpoint) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, checkpoint)
    record_metrics(path, {"ap": 0.31, "ap_large": float("nan")}, {})
    read = load_checkpoint(path)
    assert read.info.metrics["ap"] == 0.31
    assert read.info.metrics["ap_large"] != read.info.metrics["ap_large"]
    assert replace(read.info, metrics={}) == checkpoint.info
    assert torch.equal(read.model["w"], checkpoint.model["w"])


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


def _bad_files(folder: Path, good: bytes) -> dict[str, Path]:
    files = {
        "empty": b"",
        "text": b"not a checkpoint\n",
        "pickle": pickle.dumps({"format": "smnas checkpoint"}),
        "cut in half": good[: len(good) // 2],
        "cut by a byte": good[:-1],
        "damaged": good[:200] + bytes(200) + good[400:],
    }
    paths = {}
    for name, content in files.items():
        paths[name] = folder / f"{name}.pt"
        paths[name].write_bytes(content)
    paths["zip"] = folder / "zip.pt"
    with zipfile.ZipFile(paths["zip"], "w") as archive:
        archive.writestr("a.txt", "hello")
    for name, value in {
        "code": {"format": "smnas checkpoint", "payload": Payload()},
        "tensor": torch.zeros(3),
        "foreign": {"state_dict": {}, "epoch": 3},
    }.items():
        paths[name] = folder / f"{name}.pt"
        torch.save(value, paths[name])
    paths["folder"] = folder / "folder.pt"
    paths["folder"].mkdir()
    paths["missing"] = folder / "missing.pt"
    return paths


def test_a_bad_file_is_one_line_for_the_user(
    tmp_path: Path, checkpoint: Checkpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good.pt"
    save_checkpoint(good, checkpoint)
    for name, path in _bad_files(tmp_path, good.read_bytes()).items():
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(path)
        message = str(error.value)
        assert str(path) in message, name
        assert "\n" not in message, name
        assert message.startswith("a checkpoint is a .pt file that training wrote, but "), name
    assert "code ran" not in capfd.readouterr().out


@pytest.mark.parametrize("part", ["info", "model", "optimizer", "history"])
def test_a_file_without_a_part_is_named(tmp_path: Path, checkpoint: Checkpoint, part: str) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, checkpoint)
    values = torch.load(path, weights_only=True)
    del values[part]
    torch.save(values, path)
    with pytest.raises(CheckpointError, match=part):
        load_checkpoint(path)


def test_another_format_version_is_named(tmp_path: Path, checkpoint: Checkpoint) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, checkpoint)
    torch.save({**torch.load(path, weights_only=True), "format_version": 1}, path)
    with pytest.raises(UserError, match=r"reads checkpoints of format 2, but .* has format 1"):
        load_checkpoint(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def write(file: Any) -> None:
        file.write(b"half of the new")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        replace_atomic(path, write)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_disk_that_is_full_is_no_failed_training(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """torch makes a ``RuntimeError`` of it, which a search would keep as the candidate's failure."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, checkpoint)
    before = path.read_bytes()
    for size_bytes in (0, 100, len(before) // 2, len(before) - 1):
        with full_after(size_bytes), pytest.raises(OSError, match="File too large"):
            save_checkpoint(path, checkpoint)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_curve_is_json_lines_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    write_curve(path, [LOG])
    append_curve(path, replace(LOG, epoch=2))
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 2]
    assert read_curve(path) == [LOG, replace(LOG, epoch=2)]
    write_curve(path, [LOG])
    assert read_curve(path) == [LOG]


# ONNX Runtime sessions of other tests make this process flush denormal numbers to zero
NUMBERS = st.floats(0, 1e6, allow_subnormal=False)


@given(loss=NUMBERS, losses=st.dictionaries(st.text(max_size=8), NUMBERS, max_size=4))
def test_an_epoch_survives_json(loss: float, losses: dict[str, float]) -> None:
    log = replace(LOG, loss=loss, losses=losses)
    assert EpochLog.from_dict(json.loads(json.dumps(log.to_dict()))) == log
