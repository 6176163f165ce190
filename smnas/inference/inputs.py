"""Inputs of detection: files, folders and patterns as image and video files."""

import glob
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from profiler.errors import UserError
from smnas.data.image import CONVERT_HEIC, HEIC_SUFFIXES
from smnas.inference.video import VIDEO_SUFFIXES

__all__ = ["Inputs", "find_inputs", "image_suffixes"]

# Formats that Pillow knows by name but leaves to missing external programs.
_STUBS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})


@dataclass(frozen=True)
class Inputs:
    """Files to detect objects in, in the given order.

    Attributes:
        skipped: Number of other files in folders by suffix; hidden ones under ``hidden``.
    """

    images: tuple[Path, ...] = ()
    videos: tuple[Path, ...] = ()
    camera: int | None = None
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def remark(self) -> str | None:
        """One line about skipped files; ``None`` without any."""
        if not self.skipped:
            return None
        heic = f"; {CONVERT_HEIC}" if HEIC_SUFFIXES & self.skipped.keys() else ""
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.skipped.most_common())
        return f"skipped {self.skipped.total()} files that are no images or videos: {kinds}{heic}"


@cache
def image_suffixes() -> frozenset[str]:
    """Return every suffix that Pillow decodes, except those of videos."""
    Image.init()
    decoded = {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN.keys() - _STUBS}
    return frozenset((decoded | {".mpo"}) - VIDEO_SUFFIXES)


def find_inputs(arguments: Iterable[str | Path], *, camera: int | None = None) -> Inputs:
    """Expand files, folders (by suffix, without hidden files and subfolders) and glob patterns to files.

    A named file is taken whatever its suffix, and only once. The suffix decides which files are videos; all others are
    images.

    Raises:
        UserError: A missing file, a folder without images and videos, or a pattern without matches.
    """
    found: dict[Path, None] = {}
    skipped: Counter[str] = Counter()
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = [one for one in sorted(path.iterdir()) if one.is_file()]
            inside = [one for one in files if _is_media(one)]
            others = Inputs(skipped=Counter(_kind(one) for one in files if not _is_media(one)))
            if not inside:
                why = f" ({others.remark})" if others.skipped else ""
                raise UserError(f"a folder must hold at least one image or video, but {path} holds none{why}")
            found.update(dict.fromkeys(inside))
            skipped += others.skipped
        elif path.exists():
            found[path] = None
        else:
            folder = next(parent for parent in path.parents if parent.exists())  # by its name, whatever that holds
            expanded = glob.glob(str(path.relative_to(folder)), root_dir=folder, recursive=True)  # noqa: PTH207  absolute
            matches = [one for one in (folder / name for name in sorted(expanded)) if one.is_file()]
            if not matches:
                raise UserError(f"an image or video must be an existing file, folder or pattern, but got {argument}")
            found.update(dict.fromkeys(matches))
    videos = tuple(path for path in found if path.suffix.lower() in VIDEO_SUFFIXES)
    return Inputs(tuple(path for path in found if path not in videos), videos, camera, skipped)


def _is_media(path: Path) -> bool:
    """Whether it is an image or video; ``._1.jpg`` beside ``1.jpg`` is macOS metadata."""
    return not path.name.startswith(".") and path.suffix.lower() in image_suffixes() | VIDEO_SUFFIXES


def _kind(path: Path) -> str:
    return "hidden" if path.name.startswith(".") else path.suffix.lower() or "without a suffix"
