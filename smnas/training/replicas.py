"""Training in several processes at once, each with its share of every batch (``torchrun``)."""

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

__all__ = ["ALONE", "LossFunction", "Replicas", "loss_of", "replicas_from_environment"]

_LONGEST_WAIT = timedelta(hours=12)
"""For the first process, which evaluates and writes alone; torchrun ends the others at once when one is lost."""
_OF_A_PROCESS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LossFunction = Callable[[Tensor, list[Target]], dict[str, Tensor]]


@dataclass(frozen=True)
class Replicas:
    """Which of how many equal processes this one is.

    Attributes:
        rank: From 0; the process of rank 0 writes files and reports.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, the same in each; every one of them must ask."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            dist.barrier()


ALONE = Replicas()


@contextmanager
def replicas_from_environment() -> Iterator[tuple[Replicas, torch.device]]:
    """Join the processes that ``torchrun`` started, and the device of this one; alone where it did not start any.

    The processes talk by NCCL on GPUs and by gloo on a CPU.

    Raises:
        UserError: the environment speaks of several processes, but not as ``torchrun`` does.
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
        yield Replicas(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()


class _Loss(nn.Module):
    def __init__(self, detector: Detector, options: LossOptions) -> None:
        super().__init__()
        self.detector = detector
        self.options = options

    def forward(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        return self.detector.loss(images, targets, self.options)


def loss_of(detector: Detector, replicas: Replicas, options: LossOptions) -> LossFunction:
    """The detector's loss as a function; its gradients are means over the replicas.

    Each replica starts from the weights of rank 0. A BatchNorm normalizes by its own replica's images.
    """
    alone = _Loss(detector, options)
    if replicas.count == 1:
        return alone
    parallel: LossFunction = DistributedDataParallel(alone)
    return parallel
