"""No kernel changes a result: the same detector trained with and without them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.dispatch import Choice, use
from smnas.data.scene import draw_scene, render
from smnas.models.build import build_detector
from smnas.models.layers import standardized_together
from smnas.models.options import DetectorOptions
from smnas.models.target import Target
from smnas.space.architecture import Architecture

STEPS = 8


def some_images(side: int) -> tuple[Tensor, list[Target]]:
    rng = np.random.default_rng(0)
    images, targets = [], []
    for _ in range(2):
        scene = draw_scene(side, side, rng)
        pixels, boxes = render(scene, rng)
        corners = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        images.append(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
        labels = torch.tensor([shape.label for shape in scene.shapes], dtype=torch.int64)
        targets.append(Target(torch.from_numpy(corners), labels))
    return torch.stack(images), targets


def train(architecture: str, kernels: Choice, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of every step, and the weights at the end."""
    torch.manual_seed(0)
    detector = build_detector(Architecture.parse(architecture), 6)
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01, momentum=0.9)
    images, targets = some_images(detector.architecture.input_width)
    losses = []
    with use(kernels):
        for _ in range(steps):
            with standardized_together(detector):
                loss = torch.stack(list(detector.loss(images, targets).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
            optimizer.step()
            losses.append(loss.item())
    return losses, detector.state_dict()


def test_a_detector_ends_where_it_does_without_them() -> None:
    # no random choice of proposals, whose border a rounding error could cross
    architecture = "basicblock_8_1-2+fpn_2-3_8+norpn+retina_8_1+32x32"
    with_kernels, with_weights = train(architecture, "triton", STEPS)
    without, without_weights = train(architecture, "torch", STEPS)
    assert without[-1] < 0.8 * without[0]  # it learns, or equal losses would say little
    np.testing.assert_allclose(with_kernels[:5], without[:5], rtol=1e-4)
    np.testing.assert_allclose(with_kernels, without, rtol=1e-2)
    assert with_kernels != without  # other sums: the kernels did run
    for name, weight in without_weights.items():
        torch.testing.assert_close(with_weights[name], weight, atol=2e-2, rtol=2e-2)


def test_one_step_of_every_kind_of_block(monkeypatch: pytest.MonkeyPatch) -> None:
    # the interpreter takes as long for a RoI as a GPU for thousands
    defaults = DetectorOptions.for_architecture
    few = {"pre_nms_top_n": 40, "proposals": 20, "roi_samples": 8}
    monkeypatch.setattr(DetectorOptions, "for_architecture", lambda *given: replace(defaults(*given), **few))
    for architecture in (
        "bottleneck_8_1-2+fpn_2-3_8+rpn+rcnn_16+32x32",
        "inverted_8_1-2+fpn_2-3_8+norpn+fcos_8_1+32x32",
    ):
        with_kernels, _ = train(architecture, "triton", 1)
        without, _ = train(architecture, "torch", 1)
        np.testing.assert_allclose(with_kernels, without, rtol=1e-4)
