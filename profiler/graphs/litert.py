"""Convert modules to LiteRT models (``.tflite``) with litert-torch: static shapes, float32."""

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from profiler.errors import BackendUnavailableError, named_line
from profiler.graphs.export import ExportError

__all__ = ["converter_version", "import_litert", "quiet", "to_litert"]


class _Flat(nn.Module):
    """A module whose outputs are one tuple: the converter knows no named ones."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(leaf for leaf in tree_leaves(self.module(*inputs)) if isinstance(leaf, Tensor))


def to_litert(module: nn.Module, example_inputs: Sequence[Tensor]) -> bytes:
    """Convert a module, in evaluation mode, to a LiteRT model; 64-bit integers become 32-bit ones.

    Inputs and outputs are in order, without names.

    Raises:
        BackendUnavailableError: litert-torch is not installed.
        ExportError: the converter has no form of the module.
    """
    converter = _converter()
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = converter.convert(_Flat(module).eval(), tuple(example_inputs))
            return bytes(converted._exporter.to_bytes())
    except Exception as error:
        raise ExportError(f"the module has no LiteRT form: {named_line(error)}") from error
    finally:
        for child, training in modes.items():
            child.training = training


def import_litert() -> Any:
    """Import LiteRT's interpreter module.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    try:
        return importlib.import_module("ai_edge_litert.interpreter")
    except ImportError as error:
        raise BackendUnavailableError(f"litert is not installed ({error}): pip install 'smnas[litert]'") from error


def converter_version() -> str:
    """Version of the installed converter, which decides what an operator becomes."""
    return str(importlib.import_module("litert_torch.version").__version__)


@cache
def _converter() -> Any:
    """Import the converter, once, and give it the forms of our operators."""
    from kernels.litert_ops import decompositions, register_lowerings

    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converter = importlib.import_module("litert_torch")
            config: Any = importlib.import_module("litert_torch._config").config
            lowerings = importlib.import_module("litert_torch.backend.lowerings")
            mlir = importlib.import_module("litert_converter.mlir.ir")
    except ImportError as error:
        raise BackendUnavailableError(
            f"litert-torch is not installed ({error}): pip install 'smnas[litert]'"
        ) from error
    config.show_progress = False
    register_lowerings(lowerings, mlir)
    converter.fx_infra.decomp.update_pre_convert_decomp(decompositions())
    return converter


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what LiteRT's native code writes to the error stream; what fails is raised as well."""
    sys.stderr.flush()
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
