"""Detectors in dense and other parts, with a stand-in for the recorder, which a CPU does not have."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from profiler.errors import UserError
from smnas.deploy.export import ExportReport, canvases
from smnas.inference.cuda_graphs import GraphedDetector, split_parts
from smnas.inference.runtime import load_model
from smnas.models.build import deployable
from smnas.models.precision import FRAGILE
from smnas.training.checkpoint import load_detector_checkpoint


class Recorded:
    """Computes anew into the tensors that recording gave, as a CUDA graph does."""

    def __init__(self, run: Callable[[], tuple[Tensor, ...]]) -> None:
        self.run = run
        self.outputs = tuple(torch.full_like(tensor, -1) for tensor in run())  # recording computes nothing
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for kept, found in zip(self.outputs, self.run(), strict=True):
            kept.copy_(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rcnn", "retina", "fcos", "garpn", "cascade"])
def test_parts_compute_what_the_whole_does(
    name: str, checkpoint: Callable[[str], Path], some_images: list[NDArray[np.uint8]]
) -> None:
    loaded, _ = load_detector_checkpoint(checkpoint(name))
    detector = deployable(loaded)
    made: list[Recorded] = []

    def record(run: Callable[[], tuple[Tensor, ...]], device: torch.device) -> tuple[Recorded, tuple[Tensor, ...]]:
        assert device.type == "cpu"
        made.append(Recorded(run))
        return made[-1], made[-1].outputs

    graphed = GraphedDetector(detector, record)
    images = torch.from_numpy(canvases(some_images[:6], *detector.input_size))
    with torch.inference_mode():
        for batch in (images[:2], images[2:4], images[4:5], images[:2]):
            for found, expected in zip(graphed(batch), detector(batch), strict=True):
                torch.testing.assert_close(found, expected)
    dense = [part for part in split_parts(detector.steps) if part.dense]
    assert len(made) == 2 * len(dense)  # of two sizes of batches
    assert [one.replays for one in made] == [3] * len(dense) + [1] * len(dense)


@pytest.mark.parametrize(
    ("name", "parts"), [("retina", [True, False]), ("garpn", [True, False, True, False, True, False])]
)
def test_dense_steps_are_apart_from_those_that_select(
    name: str, parts: list[bool], checkpoint: Callable[[str], Path]
) -> None:
    detector, _ = load_detector_checkpoint(checkpoint(name))
    found = split_parts(detector.steps)
    assert [part.dense for part in found] == parts
    assert [step for part in found for step in part.steps] == detector.steps
    for part in found:
        assert not any(isinstance(step.module, FRAGILE) == part.dense for step in part.steps)
    assert found[0].inputs == ("images",)
    assert set(found[-1].outputs) == {"num", "boxes", "scores", "labels"}


def test_where_there_can_be_no_graph_it_is_one_line(
    exported: Callable[[str], ExportReport], checkpoint: Callable[[str], Path]
) -> None:
    for path, says in (
        (exported("rcnn").path, "for checkpoints and engines, but got rcnn.onnx"),
        (checkpoint("rcnn"), "needs a CUDA device, but rcnn.pt runs on cpu"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            load_model(path, cuda_graph=True)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_recorded_detector_finds_what_it_finds_unrecorded(
    checkpoint: Callable[[str], Path], some_images: list[NDArray[np.uint8]]
) -> None:
    plain, graphed = (load_model(checkpoint("rcnn"), device="cuda", cuda_graph=graph) for graph in (False, True))
    images = canvases(some_images[:4], *plain.input_size)
    for rows in (slice(0, 2), slice(2, 4), slice(0, 1)):
        for found, expected in zip(graphed(images[rows]), plain(images[rows]), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-3)
