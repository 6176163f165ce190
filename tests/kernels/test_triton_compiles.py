"""The kernels compile to machine code for GPUs that are not here, as they are launched for maps of real sizes.

The interpreter knows no types, layouts or registers, so that what runs there may still be refused by the compiler.
"""

import importlib.util
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton, which this PyTorch comes without", allow_module_level=True)

CAPABILITIES = (80, 90)
_TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
_TYPES |= {torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8"}


@pytest.fixture(autouse=True)
def handlers_of_signals() -> Iterator[None]:
    """Give Python its signals back: LLVM takes them while it compiles, and a Ctrl-C would then end the process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGXFSZ)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Recorder:
    """Stands in for a kernel and notes how it is launched."""

    def __init__(self, kernel: Any, launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]]) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(size >= 1 for size in grid)
        assert all(size < 65536 for size in grid[1:])
        return lambda *arguments, **settings: self.launches.append((self.kernel, arguments, settings))


def record(module: ModuleType, run: Callable[[], object]) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    from triton.runtime import JITFunction

    launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in vars(module).items():
            if isinstance(value, JITFunction):
                patch.setattr(module, name, Recorder(value, launches))
        run()
    return launches


def compile_launch(kernel: Any, arguments: tuple[Any, ...], settings: dict[str, Any], capability: int) -> str:
    """PTX, which became machine code, too.

    As Triton does at a launch: by types of the arguments, 1 as a constant, and what is divisible by 16.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: settings[name] for name in ("num_warps", "enable_fp_fusion") if name in settings}
    constants: dict[Any, Any] = {name: value for name, value in settings.items() if name not in options}
    signature: dict[str, Any] = dict.fromkeys(constants, "constexpr")
    attributes = {}

    def type_of(value: Any, path: tuple[int, ...]) -> Any:
        if isinstance(value, tuple):
            return tuple(type_of(one, (*path, position)) for position, one in enumerate(value))
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[path] = [["tt.divisibility", 16]]
        if isinstance(value, int) and value == 1:
            constants[path] = 1
            return "constexpr"
        return _TYPES[value.dtype] if isinstance(value, Tensor) else "fp32" if isinstance(value, float) else "i32"

    own = {
        name: type_of(value, (position,))
        for position, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False))
    }
    signature = own | signature
    assert list(signature) == list(kernel.arg_names)
    source = ASTSource(kernel, signature, constants, attributes)
    stages = triton.compile(source, GPUTarget("cuda", capability, 32), options).asm
    assert len(stages["cubin"]) > 1000
    ptx: str = stages["ptx"]
    # sums are added in a fixed order
    assert not re.search(r"^\s*(@\S+\s+)?(atom|red)\.", ptx, flags=re.MULTILINE)
    return ptx


def launches_of_group_norm(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, *, last: bool, residual: bool
) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    from kernels.triton import group_norm

    x = torch.empty(shape, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    weight, bias = torch.empty(2, shape[1])
    statistics = torch.empty(2, shape[0], groups)

    def run() -> None:
        group_norm.forward(x, x if residual else None, weight, bias, groups, 1e-5, True)
        group_norm.backward((x, x, x if residual else None, weight, bias, *statistics), True, residual)

    return record(group_norm, run)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "groups", "dtype", "last", "residual", "count"),
    [
        ((4, 256, 200, 200), 32, torch.bfloat16, True, True, 6),  # C2 of a ResNet-50 at 800x800: in tiles
        ((16, 64, 128, 128), 32, torch.float32, False, False, 6),
        ((8, 64, 8, 8), 8, torch.float16, False, True, 2),  # small maps: whole groups
        ((2, 30, 5, 7), 10, torch.float32, True, False, 2),
    ],
)
def test_group_norm(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, last: bool, residual: bool, count: int
) -> None:
    launches = launches_of_group_norm(shape, groups, dtype, last=last, residual=residual)
    assert len(launches) == count
    for launch in launches:
        for capability in CAPABILITIES if dtype is torch.bfloat16 else CAPABILITIES[:1]:
            ptx = compile_launch(*launch, capability)
            if shape[1] % 16 == 0 and "group_" not in launch[0].__name__:
                assert "ld.global.v4" in ptx, launch[0].__name__  # maps are read 16 bytes at a time


def test_weight_standardization() -> None:
    from kernels.triton import weight_standardization as kernel

    weights = [torch.ones(64, 3, 3, 3), torch.ones(64, 64, 3, 3)]

    def run() -> None:
        out, rstd = kernel.forward(weights, 1e-5)
        kernel.backward(weights, out, rstd)

    launches = record(kernel, run)
    assert len(launches) == 2
    for launch in launches:
        assert "ld.global" in compile_launch(*launch, 80)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shapes", "size", "dtype", "last"),
    [
        ([(2, 256, 200, 336), (2, 256, 100, 168), (2, 256, 50, 84), (2, 256, 25, 42)], 7, torch.bfloat16, True),
        ([(2, 48, 32, 32), (2, 48, 16, 16)], 7, torch.float32, False),
        ([(1, 1, 1, 1), (1, 1, 1, 1)], 1, torch.float32, False),  # sizes of 1 are constants to the compiler
    ],
)
def test_pooling(shapes: list[tuple[int, ...]], size: int, dtype: torch.dtype, last: bool) -> None:
    from kernels.triton import roi_align

    layout = torch.channels_last if last else torch.contiguous_format
    maps = [torch.empty(shape, dtype=dtype, memory_format=layout) for shape in shapes]
    batch, channels = shapes[0][:2]
    boxes = torch.zeros(batch, 1 if size == 1 else 40, 4)
    upstream = torch.zeros(boxes.shape[0] * boxes.shape[1], channels, size, size, dtype=dtype)
    strides = [4 << level for level in range(len(maps))]

    def run() -> None:
        roi_align.forward(torch.empty_like(upstream), maps, boxes, strides, 2, 224.0, channels_last=last)
        gradients = [torch.empty_like(one) for one in maps]
        roi_align.backward(gradients, upstream, boxes, strides, 2, 224.0, channels_last=last)

    launches = record(roi_align, run)
    assert len(launches) == 2
    for launch in launches:
        ptx = compile_launch(*launch, 80)
        assert ("ld.global.v4" in ptx) == (last and launch[0].__name__ == "_forward")  # 16 bytes at a time


@pytest.mark.slow
def test_suppression() -> None:
    from kernels.triton import nms

    launches = record(
        nms, lambda: nms.keep(torch.rand(2, 5000, 4), torch.rand(2, 5000), torch.zeros(2, 5000).long(), 0.5)
    )
    assert len(launches) == 2
    drops, _ = (compile_launch(*launch, 80) for launch in launches)
    # overlaps are torchvision's to the last bit
    assert "fma." not in drops
    assert "div.rn.f32" in drops
