"""Files that are either the old one or the new one, never half of one, whenever the process is killed.

One process at a time writes these files, so the temporary one has a fixed name: what a killed process left there the
next one overwrites. Files that many may write at once go through :mod:`profiler.atomic`, under a name for each writer.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

__all__ = ["replace_atomically", "write_atomically"]


def replace_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to the disk, then put it in ``path``'s place.

    An exception from ``write`` leaves ``path`` as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by these bytes."""
    replace_atomically(path, lambda file: file.write(content))
