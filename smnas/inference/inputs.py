"""What detection runs on: files, folders and patterns as image and video files."""

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from profiler.errors import UserError
from smnas.inference.video import VIDEO_SUFFIXES

__all__ = ["IMAGE_SUFFIXES", "Inputs", "find_inputs"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


@dataclass(frozen=True)
class Inputs:
    """Files to find objects in.

    Attributes:
        images: In the order in which they were given.
        videos: Likewise.
        camera: The number of a camera.
    """

    images: tuple[Path, ...] = ()
    videos: tuple[Path, ...] = ()
    camera: int | None = None


def find_inputs(arguments: Iterable[str | Path], *, camera: int | None = None) -> Inputs:
    """Files, folders (what lies in them by suffix, not in folders inside) and glob patterns, as files.

    A file that is named is taken whatever its suffix, and once even if it is named twice. The suffix says which files
    are videos; all others are images.

    Args:
        arguments: What the user names.
        camera: Passed on.

    Raises:
        UserError: Nothing is there under a name, a folder without images and videos, a pattern without matches.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = [one for one in sorted(path.iterdir()) if _is_media(one) and one.is_file()]
            if not inside:
                raise UserError(f"a folder must hold at least one image or video, but {path} holds none")
            found.update(dict.fromkeys(inside))
        elif path.exists():
            found[path] = None
        else:
            expanded = glob.glob(str(argument), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            matches = [one for one in map(Path, sorted(expanded)) if one.is_file()]
            if not matches:
                raise UserError(f"an image or video must be an existing file, folder or pattern, but got {argument}")
            found.update(dict.fromkeys(matches))
    videos = tuple(path for path in found if path.suffix.lower() in VIDEO_SUFFIXES)
    return Inputs(tuple(path for path in found if path not in videos), videos, camera)


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
