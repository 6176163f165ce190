"""The kernels as machine code for a GPU that is not here: what the interpreter does not check, and what it can not show.

The interpreter runs Python; a compiler also wants types that do not change in a loop. What was compiled tells whether
sums are atomic and whether products and sums were fused.
"""

import re
from typing import Any

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource, CompiledKernel  # noqa: E402

from kernels.triton import nms, roi_align  # noqa: E402

LEVELS = 3


def build(kernel: Any, types: dict[str, Any], constants: dict[Any, Any], *, fuse: bool = True) -> CompiledKernel:
    """Compile for compute capability 8.0; a type of ``constexpr`` within a tuple has its value under its path."""
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    constexprs = {
        key if isinstance(key, str) else (kernel.arg_names.index(key[0]), key[1]): value
        for key, value in constants.items()
    }
    source = ASTSource(kernel, signature, constexprs=constexprs)
    return triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": fuse})


def check(found: CompiledKernel) -> str:
    """What was compiled, as text; there are no atomic operations in it."""
    assert found.asm["cubin"]
    text: str = found.asm["ptx"]
    assert not re.search(r"^\s*(@\S+\s+)?(atom|red)\.", text, flags=re.MULTILINE)
    return text


def pooling_types(dtype: str, whole: str = "i32") -> dict[str, Any]:
    every = {name: (whole,) * LEVELS for name in ("heights", "widths")}
    every |= {name: ("fp32",) * LEVELS for name in ("scales", "thresholds")}
    return every | {
        "features": (f"*{dtype}",) * LEVELS,
        "gradients": (f"*{dtype}",) * LEVELS,
        "boxes": "*fp32",
        "pooled": f"*{dtype}",
        "upstream": f"*{dtype}",
        "first_tiles": ("i32",) * LEVELS,
        "canonical_size": "fp32",
        "count": "i32",
        "channels": "i32",
    }


@pytest.mark.parametrize(("dtype", "last"), [("fp32", False), ("bf16", True)])
def test_pooling(dtype: str, last: bool) -> None:
    constants = {"LEVELS": LEVELS, "SIZE": 7, "SAMPLES": 2, "CHANNELS_LAST": last}
    own = {"BINS": 64, "CHANNELS": 32}
    check(build(roi_align._forward, pooling_types(dtype), constants | own))
    own = {"ROWS": 4, "COLUMNS": 16, "CHANNELS": 32, "BOXES": 128}
    check(build(roi_align._backward, pooling_types(dtype), constants | own))


def test_pooling_of_maps_of_one_cell() -> None:
    # a size of 1 is a constant to the compiler
    ones: dict[Any, Any] = {(name, level): 1 for name in ("heights", "widths") for level in range(LEVELS)}
    constants = ones | {"LEVELS": LEVELS, "SIZE": 1, "SAMPLES": 2, "CHANNELS_LAST": False, "count": 1, "channels": 1}
    types = pooling_types("fp32", "constexpr") | {"count": "constexpr", "channels": "constexpr"}
    check(build(roi_align._forward, types, constants | {"BINS": 1, "CHANNELS": 1}))
    check(build(roi_align._backward, types, constants | {"ROWS": 4, "COLUMNS": 16, "CHANNELS": 1, "BOXES": 128}))


def test_suppression() -> None:
    drops = {
        **{"boxes": "*fp32", "groups": "*i64", "order": "*i64", "bits": "*i32"},
        **{"count": "i32", "words": "i32", "threshold": "fp32"},
    }
    text = check(build(nms._drops, drops, {"ROWS": 32, "WORDS": 2}, fuse=False))
    assert "fma." not in text  # overlaps are torchvision's to the last bit
    assert "div.rn.f32" in text
    scan = {"bits": "*i32", "order": "*i64", "candidates": "*i32", "kept": "*u8", "count": "i32", "words": "i32"}
    check(build(nms._scan, scan, {"WORDS": 8}))
