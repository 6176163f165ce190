"""Who computes an operator: what was asked for, and where the tensors are."""

import importlib.util
from typing import Any

import pytest
import torch

from kernels import dispatch
from kernels.dispatch import choice, runs_triton, use


class OnCuda:
    """As much of a tensor on a GPU as the choice looks at."""

    is_cuda = True

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.device = torch.device("cuda")


def test_pytorch_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMNAS_KERNELS", raising=False)
    there: Any = OnCuda()
    assert choice() == "torch"
    assert not runs_triton(there)


def test_the_innermost_block_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMNAS_KERNELS", "triton")
    assert choice() == "triton"
    with use("torch"):
        assert choice() == "torch"
        with use("triton"):
            assert choice() == "triton"
        assert choice() == "torch"
    with pytest.raises(ZeroDivisionError), use("torch"):
        _ = 1 / 0
    assert choice() == "triton"


def test_an_unknown_name_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMNAS_KERNELS", "cuda")
    with pytest.raises(ValueError, match="SMNAS_KERNELS must be one of torch, triton, but got 'cuda'"):
        choice()


def test_only_tensors_on_cuda_of_three_types_go_through_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    there: Any = OnCuda()
    with use("triton"):
        assert runs_triton(there)
        assert runs_triton(*(OnCuda(dtype) for dtype in (torch.float16, torch.bfloat16, torch.int64)))  # type: ignore[arg-type]
        assert not runs_triton(OnCuda(torch.float64))  # type: ignore[arg-type]
        assert not runs_triton(torch.ones(2))
        assert not runs_triton(torch.ones(2, device="meta"))
        assert not runs_triton(there, torch.ones(2))


def test_kernels_without_triton_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    there: Any = OnCuda()
    find = importlib.util.find_spec
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None if name == "triton" else find(name))
    with use("triton"), pytest.raises(ImportError, match="pip install triton"):
        runs_triton(there)
