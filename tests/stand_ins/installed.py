"""Which optional packages are here, for tests that need them."""

import importlib

__all__ = ["installed_version"]


def installed_version(module_name: str) -> str | None:
    """The version of a module; ``None`` if it cannot be imported, as where a wheel lacks the libraries it loads."""
    try:
        module = importlib.import_module(module_name)
    except (ImportError, OSError):
        return None
    return str(getattr(module, "__version__", "unknown"))
