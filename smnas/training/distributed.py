"""Distributed data-parallel training under ``torchrun``: each rank trains on its part of every batch."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from profiler.errors import UserError
from smnas.models.detector import Detector
from smnas.models.losses import LossOptions
from smnas.models.target import Target

__all__ = ["ALONE", "LossFunction", "Ranks", "loss_of", "ranks_from_environment"]

_LONGEST_WAIT = timedelta(hours=12)
"""Timeout of collectives, long enough for rank 0 to evaluate alone; torchrun ends all ranks when one is lost."""
_OF_A_PROCESS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LossFunction = Callable[[Tensor, list[Target]], dict[str, Tensor]]


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among the DDP ranks.

    Attributes:
        rank: From 0; rank 0 writes files and reports.
        count: Number of ranks (the world size).
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks, in place; a collective, so every rank must call it."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.count > 1:
            dist.barrier()


ALONE = Ranks()


@contextmanager
def ranks_from_environment() -> Iterator[tuple[Ranks, torch.device]]:
    """Join the process group that ``torchrun`` started; yields the ranks and this rank's device.

    Without ``torchrun`` this is a single process. The backend is NCCL on GPUs and gloo on a CPU.

    Raises:
        UserError: ``WORLD_SIZE`` is set without the other variables of ``torchrun``.
    """
    cuda = torch.cuda.is_available()
    count = os.environ.get("WORLD_SIZE", "1")
    missing = [name for name in _OF_A_PROCESS if name not in os.environ]
    if count != "1" and (missing or not re.fullmatch(r"[1-9]\d*", count)):
        without = f" without {', '.join(missing)}" if missing else ""
        raise UserError(f"processes that train together are started by torchrun, but got WORLD_SIZE={count!r}{without}")
    if count == "1":
        yield ALONE, torch.device("cuda" if cuda else "cpu")
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=_LONGEST_WAIT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()


class _Loss(nn.Module):
    def __init__(self, detector: Detector, options: LossOptions) -> None:
        super().__init__()
        self.detector = detector
        self.options = options

    def forward(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        return self.detector.loss(images, targets, self.options)


def loss_of(detector: Detector, ranks: Ranks, options: LossOptions) -> LossFunction:
    """The detector's loss as a function with gradients averaged over the ranks, which start from rank 0's weights.

    BatchNorm uses the statistics of its own rank's images.
    """
    alone = _Loss(detector, options)
    if ranks.count == 1:
        return alone
    parallel: LossFunction = DistributedDataParallel(alone)
    return parallel
