"""Arguments of the Python door as the values that the packages take."""

import logging
import math
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from profiler.errors import UserError
from smnas.space.architecture import Architecture

if TYPE_CHECKING:
    from profiler.backends.base import Backend
    from smnas.data.coco import CocoFolder
    from smnas.training.pretrained import Pretrained
    from smnas.training.recipe import Recipe

__all__ = [
    "OnProgress",
    "StrPath",
    "architecture_of",
    "backend_of",
    "check_images",
    "epochs_of",
    "held_out_of",
    "note_lines",
    "number_of",
    "one_of",
    "open_data",
    "pretrained_of",
    "quiet",
    "recipe_of",
]

StrPath = str | Path
OnProgress = Callable[[str, float, float | None, str], None]
"""Called with a phase, how much of it is done, of how much (None: unknown), and the current item."""

MOST_EPOCHS = 300
"""The most epochs of a schedule that ends by itself, where none are given."""

_log = logging.getLogger(__name__)


def quiet(phase: str, done: float, total: float | None, text: str = "") -> None:
    """Report no progress."""


def architecture_of(text: "Architecture | str") -> Architecture:
    """An architecture from its string or as it is."""
    return text if isinstance(text, Architecture) else Architecture.parse(text)


def recipe_of(recipe: "str | Path | Recipe") -> "Recipe":
    """A recipe by name, from a file or as it is."""
    from smnas.training.recipe import load_recipe

    return load_recipe(str(recipe)) if isinstance(recipe, str | Path) else recipe


def one_of(option: str, kinds: Any, name: str) -> Any:
    """Return ``name`` if it is a value of the literal type ``kinds``; :class:`UserError` if not."""
    known = get_args(kinds)
    if name not in known:
        raise UserError(f"{option} must be one of {', '.join(known)}, but got {name!r}")
    return name


def number_of(option: str, value: Any, kind: type, below: float = math.inf) -> Any:
    """Return ``value`` as a number above 0 and, where given, ``below`` a bound; :class:`UserError` if it is none."""
    try:
        found = kind(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if found != value or not 0 < found < below:
        what = "a whole number" if kind is int else "a number"
        ends = "above 0" if below == math.inf else f"between 0 and {below:g}"
        raise UserError(f"{option} must be {what} {ends}, but got {value!r}")
    return found


def epochs_of(option: str, epochs: int | str | None) -> tuple[int | None, bool]:
    """A number of epochs, and whether the schedule ends by itself, at the latest then: ``auto`` or ``auto:MOST``."""
    if epochs is None or isinstance(epochs, int):
        return epochs, False
    found = re.fullmatch(r"(auto)(?::(\d{1,6}))?|(\d{1,6})", epochs)
    if found is None:
        raise UserError(f"{option} must be a whole number, auto or auto:MOST, but got {epochs!r}")
    return int(found[2] or found[3] or MOST_EPOCHS), found[1] is not None


def open_data(
    root: StrPath,
    *,
    drop_bad_boxes: bool,
    drop_bad_images: bool = False,
    note: bool = True,
    test_data: StrPath | None = None,
) -> "CocoFolder":
    """Open a data set, with held-out images of ``test_data``; ``note`` logs what was left out of it."""
    from smnas.data.coco import CocoFolder

    folder = CocoFolder(root, drop_bad_boxes=drop_bad_boxes, drop_bad_images=drop_bad_images, test=test_data)
    if note:
        note_lines(folder.notes)
    return folder


def held_out_of(root: StrPath, test_data: StrPath | None) -> StrPath | None:
    """The folder of held-out images: the given one, or the data set itself if it has a ``test`` split."""
    from smnas.data.coco import has_test_split

    return root if test_data is None and has_test_split(Path(root)) else test_data


def pretrained_of(source: StrPath | None) -> "Pretrained | None":
    """Weights to start from: ``imagenet``, a file, or the checkpoint of a folder."""
    if source is None:
        return None
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise UserError(f"--pretrained must be imagenet, a file or a folder, but got {source!r}")
    from smnas.inference.model_file import model_file
    from smnas.training.pretrained import IMAGENET, read_pretrained

    if source != IMAGENET and Path(source).is_dir():
        source = model_file(Path(source), prefer="checkpoint")
    return read_pretrained(IMAGENET if source == IMAGENET else os.path.abspath(source))  # noqa: PTH100


def note_lines(lines: Iterable[str]) -> None:
    """Log notes."""
    for line in lines:
        _log.info("%s", line)


def _counted(on_progress: OnProgress, phase: str, done: int, total: int) -> None:
    on_progress(phase, done, total, "")


def check_images(folder: "CocoFolder", on_progress: OnProgress) -> None:
    """Decode the images of evaluation once: training reads its own in its first minutes, and these at its end."""
    before = folder.notes
    for name in folder.splits[1:]:
        phase = f"checking {'validation' if name == 'val' else name} images"
        folder.split(name).require_decodable(partial(_counted, on_progress, phase))
    note_lines(line for line in folder.notes if line not in before)


def backend_of(device: str, backend: str, precision: str, threads: int) -> "Backend":
    """A backend on a device, checked to know the precision."""
    from profiler.backends import get_backend
    from profiler.backends.base import check_precision
    from profiler.devices import resolve_device

    count = number_of("--threads", threads, int)
    found = get_backend(backend, resolve_device(device), threads=count)
    check_precision(found, precision)
    return found
