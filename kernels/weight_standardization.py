"""Weight Standardization: every output filter of a convolution gets zero mean and unit variance.

Source: Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
arXiv 1903.10520.
"""

import torch
from torch import Tensor

__all__ = ["weight_standardize", "weight_standardize_reference"]


def weight_standardize_reference(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """The specification: subtract each filter's mean, divide by ``sqrt(variance + eps)``.

    Args:
        weight: ``(O, I, kh, kw)`` convolution weight.
        eps: Added to the (biased) variance.

    Returns:
        A tensor of the shape and type of ``weight``.
    """
    flat = weight.flatten(1)
    mean = flat.mean(dim=1, keepdim=True)
    variance = flat.var(dim=1, keepdim=True, unbiased=False)
    return ((flat - mean) / torch.sqrt(variance + eps)).view_as(weight)


def weight_standardize(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """As :func:`weight_standardize_reference`, in one operator forward and one backward.

    Batch normalization of a batch of one whose channels are the filters is the same arithmetic, and PyTorch has it
    fused.
    """
    flat = weight.reshape(1, weight.shape[0], -1)
    return torch.nn.functional.batch_norm(flat, None, None, training=True, eps=eps).view_as(weight)
