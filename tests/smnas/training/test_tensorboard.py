"""TensorBoard logs, read back by TensorBoard's own reader."""

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from profiler.errors import UserError
from smnas.training.curve import EpochLog
from smnas.training.tensorboard import TensorBoard


def log(epoch: int, ap: float | None = None) -> EpochLog:
    return EpochLog(epoch, 3, 2.0 / epoch, {"box": 1.5 / epoch}, 0.1, 50.0, 2.0, 4.0, 800.0, ap, ap)


def test_tensorboard_reads_every_epoch_once_also_after_a_resume(tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard"
    with TensorBoard(folder, ()) as board:
        board.add(log(1))
        board.add(log(2, ap=0.25))
    (folder / "notes.txt").write_text("of a person")
    with TensorBoard(folder, [log(1), log(2, ap=0.25)]) as board:  # resumed
        board.add(log(3))
    events = EventAccumulator(str(folder)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/sum")] == [
        (1, 2.0),
        (2, 1.0),
        (3, pytest.approx(2 / 3)),
    ]
    assert [event.step for event in events.Scalars("loss/box")] == [1, 2, 3]
    assert [(event.step, event.value) for event in events.Scalars("validation/AP")] == [(2, 0.25)]
    assert (folder / "notes.txt").exists()
    assert {"learning_rate", "speed/images_per_s", "speed/memory_mb"} <= set(events.Tags()["scalars"])


def test_without_tensorboard_the_command_that_adds_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'smnas\[tensorboard\]'"):
        TensorBoard(tmp_path, ())
