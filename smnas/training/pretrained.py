"""Weights that training starts from: torchvision's ImageNet weights, a ``state_dict`` file, or a checkpoint."""

import contextlib
import hashlib
import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from profiler.errors import UserError, first_line
from smnas.models.layers import NormKind
from smnas.models.remapping import Block, Seed, block_of, seed_block, seed_state
from smnas.space.architecture import Architecture
from smnas.space.families.base import Backbone
from smnas.training.checkpoint import load_checkpoint

__all__ = ["IMAGENET", "Pretrained", "read_pretrained"]

IMAGENET = "imagenet"
_WEIGHTS = "IMAGENET1K_V1"
# torchvision's networks for each kind of block; the first is where ImageNet weights come from
_PUBLISHED = {
    "basicblock": ("resnet18", "resnet34"),
    "bottleneck": ("resnet50", "resnet101", "resnet152"),
    "resnext": ("resnext50_32x4d", "resnext101_32x8d"),
    "inverted": ("mobilenet_v2",),
}
_DEPTH = 8  # basic blocks of ResNet-18; from more on it is ResNet-34


@dataclass(frozen=True)
class Pretrained:
    """Weights to start from, as worker processes get them.

    Attributes:
        source: ``imagenet`` or a file.
        digest: Of its content.
        norm: That the weights were trained with.
    """

    source: str
    digest: str
    norm: NormKind = "bn"

    def seed(self, backbone: Backbone) -> Seed:
        """The network that ``backbone`` starts from.

        Raises:
            UserError: none has its kind of block, or the file can not be read or has changed.
        """
        if self.source == IMAGENET:
            return _imagenet(_network(backbone))
        seed = _read(self.source)
        if seed.digest != self.digest:
            raise UserError(f"weights to start from stay as they are, but {self.source} has changed")
        if seed.block != block_of(backbone):
            raise UserError(
                f"a backbone starts from weights with the same kind of block, but {self.source} has {seed.block} and "
                f"{backbone} has {block_of(backbone)}"
            )
        return seed


def read_pretrained(source: str) -> Pretrained:
    """Weights to start from: ``imagenet`` or a file.

    Raises:
        UserError: the file is missing, or neither a checkpoint nor the ``state_dict`` of a network that is supported.
    """
    if source == IMAGENET:
        return Pretrained(IMAGENET, _WEIGHTS)
    seed = _read(source)
    return Pretrained(source, seed.digest, seed.norm or "bn")


def _network(backbone: Backbone) -> str:
    block = block_of(backbone)
    if block not in _PUBLISHED:
        raise UserError(f"ImageNet weights are those of ResNets, ResNeXts and MobileNetV2, but got {backbone}")
    deeper = block == "basicblock" and sum(backbone.depths) > _DEPTH
    return _PUBLISHED[block][1 if deeper else 0]


@lru_cache
def _imagenet(network: str) -> Seed:
    from torchvision.models import get_model_weights

    weights = get_model_weights(network)[_WEIGHTS]
    folder, file = Path(torch.hub.get_dir()) / "checkpoints", weights.url.rpartition("/")[2]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # torch writes a line of its own
            state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(
            f"ImageNet weights are downloaded or lie in {folder}, but for {file} got: {first_line(error)}"
        ) from None
    return _seed(file, state)


@lru_cache(maxsize=2)
def _read(source: str) -> Seed:
    path, rule = Path(source), "weights to start from are a checkpoint or the state_dict of a torchvision network"
    if not path.is_file():
        raise UserError(f"{rule}, but there is no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, ValueError, LookupError, OSError):
        raise UserError(f"{rule}, but {path} is damaged or something else") from None
    if isinstance(state, dict) and "format_version" in state:
        return _of_checkpoint(path)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{rule}, but {path} holds something else")
    return _seed(path.name, state)


def _seed(name: str, state: Mapping[str, Tensor]) -> Seed:
    backbone = seed_state(state)
    block = seed_block(backbone)
    _require_whole(name, block, backbone)
    return Seed(name, block, backbone, _digest(state))


def _require_whole(name: str, block: Block, backbone: Mapping[str, Tensor]) -> None:
    """Raise UserError unless every tensor of the nearest published network is there, in any width, and is finite."""
    nearest, whole = min(
        ((network, _tensors(network)) for network in _PUBLISHED[block]), key=lambda one: len(one[1].keys() ^ backbone)
    )
    lacking = sorted(whole.keys() - backbone.keys())
    if lacking:
        raise UserError(
            f"weights to start from are those of a whole network, but {name} lacks {len(lacking)} of {len(whole)} "
            f"tensors of {nearest}'s backbone, such as {lacking[0]}"
        )
    for key, expected in whole.items():
        tensor = backbone[key]
        if tensor.layout != torch.strided or tensor.ndim != expected.ndim:
            kind = "dense" if tensor.layout == torch.strided else "sparse"
            raise UserError(
                f"weights to start from are dense, {key} of {expected.ndim} dimensions, but in {name} it is {kind} of "
                f"shape {tuple(tensor.shape)}"
            )
        if not tensor.isfinite().all() or (key.endswith("running_var") and (tensor < 0).any()):
            raise UserError(f"weights must be finite and variances not negative, but those of {key} in {name} are not")


@lru_cache
def _tensors(network: str) -> dict[str, Tensor]:
    """The state of a published backbone, on the meta device, but for counts of batches."""
    from torchvision.models import get_model

    with torch.device("meta"):
        state = seed_state(get_model(network, weights=None).state_dict())
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def _of_checkpoint(path: Path) -> Seed:
    checkpoint = load_checkpoint(path)
    info = checkpoint.info
    model = checkpoint.deployed if checkpoint.average is None else checkpoint.average
    inside = "backbone."
    return Seed(
        info.architecture,
        block_of(Architecture.parse(info.architecture).backbone),
        {name.removeprefix(inside): tensor for name, tensor in model.items() if name.startswith(inside)},
        _digest(model),
        rest={name: tensor for name, tensor in model.items() if not name.startswith(inside)},
        norm=info.norm,
        stem=info.stem,
    )


def _digest(weights: Mapping[str, Tensor]) -> str:
    content = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        content.update(name.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        content.update(flat.view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return content.hexdigest()[:10]
