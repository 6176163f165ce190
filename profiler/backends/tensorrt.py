"""TensorRT and TensorRT-RTX: whether they are installed. Building engines with them is not part of this version."""

import importlib
from typing import NoReturn

from profiler.devices import Device
from profiler.errors import BackendUnavailableError

__all__ = ["installed_version", "require_tensorrt"]

_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}


def installed_version(module_name: str) -> str | None:
    """Version of an importable TensorRT module, ``None`` where it can not be imported.

    Args:
        module_name: ``tensorrt`` or ``tensorrt_rtx``.
    """
    try:
        module = importlib.import_module(module_name)
    except (ImportError, OSError):  # the wheel may be there without the libraries that it loads
        return None
    return str(getattr(module, "__version__", "unknown"))


def require_tensorrt(module_name: str, device: Device, threads: int) -> NoReturn:
    """Say that engines can not be built yet, and what can be used instead.

    Raises:
        BackendUnavailableError: always.
    """
    version = installed_version(module_name)
    found = f"{module_name} {version} is installed" if version else f"{module_name} is not installed"
    raise BackendUnavailableError(
        f"{module_name} engines can not be built by this version of smnas yet ({found}); "
        "use --backend onnxruntime or --backend eager"
    )
