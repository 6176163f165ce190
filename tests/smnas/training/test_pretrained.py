"""Files of weights to start from: whole networks of any width are read, and what is wrong with others is one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model

from profiler.errors import UserError
from smnas.training.pretrained import read_pretrained

State = dict[str, Tensor]
CONV, NORM = "features.2.conv.0.0.weight", "features.2.conv.0.1."


@pytest.fixture(scope="module")
def mobilenet() -> State:
    return get_model("mobilenet_v2", weights=None, width_mult=0.25).state_dict()  # type: ignore[no-any-return]


@pytest.mark.parametrize("halved", [False, True])
def test_a_narrower_or_rounded_network_is_whole(mobilenet: State, tmp_path: Path, halved: bool) -> None:
    state = {name: one.half() if halved and one.is_floating_point() else one for name, one in mobilenet.items()}
    torch.save(state, tmp_path / "w.pt")
    assert read_pretrained(str(tmp_path / "w.pt")).norm == "bn"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda s: {k: v for k, v in s.items() if int(k.split(".")[1]) < 4},
            "lacks 210 of 255 tensors of mobilenet_v2",
        ),
        (lambda s: {k: v for k, v in s.items() if "running" not in k}, "such as stage0.0.conv.0.1.running_mean"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("features.5.")}, "lacks 15 of 255"),
        (lambda s: s | {CONV: torch.zeros(3)}, r"of 4 dimensions, but in w.pt it is dense of shape \(3,\)"),
        (lambda s: s | {f"{NORM}weight": s[f"{NORM}weight"] * torch.nan}, "must be finite"),
        (lambda s: s | {f"{NORM}running_var": -s[f"{NORM}running_var"]}, "variances not negative"),
    ],
    ids=["first layers", "no statistics", "a layer lacks", "no convolution", "nan", "negative variance"],
)
def test_damaged_weights_are_refused(
    mobilenet: State, tmp_path: Path, damage: Callable[[State], State], says: str
) -> None:
    torch.save(damage(mobilenet), tmp_path / "w.pt")
    with pytest.raises(UserError, match=says) as caught:
        read_pretrained(str(tmp_path / "w.pt"))
    assert "\n" not in str(caught.value)
