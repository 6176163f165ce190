"""Where PyTorch trains and evaluates, which is not always the device that latency is for."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["training_device"]


def training_device() -> "torch.device":
    """The first CUDA device where there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
