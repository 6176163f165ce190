"""Search for the object detector to deploy: on this device, for these images, within this many milliseconds.

Everything the commands do, from Python: one function a command, values in, values out, nothing printed. Each name is
imported when it is first used, so that ``import smnas`` is fast.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smnas.api import (
        Evaluation,
        Profile,
        SearchRun,
        TrainingRun,
        build,
        build_engines,
        detect,
        estimate,
        evaluate,
        export,
        profile,
        rank,
        report,
        search,
        train,
        train_supernet,
    )
    from smnas.inference.detector import Detector
    from smnas.space.architecture import Architecture
    from smnas.space.preset import Space, load_space

__all__ = [
    "Architecture",
    "Detector",
    "Evaluation",
    "Profile",
    "SearchRun",
    "Space",
    "TrainingRun",
    "__version__",
    "build",
    "build_engines",
    "detect",
    "estimate",
    "evaluate",
    "export",
    "load_space",
    "profile",
    "rank",
    "report",
    "search",
    "train",
    "train_supernet",
]

_ELSEWHERE = {
    "Architecture": "smnas.space.architecture",
    "Detector": "smnas.inference.detector",
    "Space": "smnas.space.preset",
    "load_space": "smnas.space.preset",
}
"""The module of a name that is not in :mod:`smnas.api`."""

try:
    __version__ = version("smnas")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"


class _CallablePackage(ModuleType):
    """A package whose call is the function of the same name in :mod:`smnas.api`: ``smnas.search(...)``."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        function = getattr(importlib.import_module("smnas.api"), self.__name__.rpartition(".")[2])
        return function(*args, **options)


# The import system binds a subpackage to its name here when a module of it is imported: so these two are both.
for _name in ("search", "report"):
    importlib.import_module(f"smnas.{_name}").__class__ = _CallablePackage


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_ELSEWHERE.get(name, "smnas.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
