"""Who computes an operator: what was asked for, and where the tensors are."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import dispatch
from kernels.dispatch import can_build, choice, runs_triton, use


class OnCuda:
    """As much of a tensor on a GPU as the choice looks at."""

    is_cuda = True

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.device = torch.device("cuda")


@pytest.mark.parametrize("built", [True, False])
def test_by_default_a_kernel_runs_where_it_pays_and_can_be_built(monkeypatch: pytest.MonkeyPatch, built: bool) -> None:
    monkeypatch.delenv("SMNAS_KERNELS", raising=False)
    monkeypatch.setattr(dispatch, "can_build", lambda: built)
    there: Any = OnCuda()
    assert choice() == "measured"
    assert not runs_triton(there)
    assert runs_triton(there, pays=True) == built
    assert not runs_triton(there, torch.ones(2), pays=True)
    with use("torch"):
        assert not runs_triton(there, pays=True)


def test_a_kernel_can_be_built_with_triton_and_a_compiler_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    can_build.cache_clear()
    assert not can_build()
    compiler = tmp_path / "gcc"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    can_build.cache_clear()
    assert can_build() == (importlib.util.find_spec("triton") is not None)
    can_build.cache_clear()


def test_by_default_the_interpreter_runs_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMNAS_KERNELS", raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not runs_triton(torch.ones(2), pays=True)


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
    with pytest.raises(ValueError, match="SMNAS_KERNELS must be one of measured, torch, triton, but got 'cuda'"):
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
