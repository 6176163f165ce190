"""Files that are either the old one or the new one, never half of one, whenever the process is killed.

One process at a time writes these files, so the temporary one has a fixed name: what a killed process left there the
next one overwrites. Files that many may write at once go through :mod:`profiler.atomic`, under a name for each writer.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["replace_atomically", "write_atomically"]


def replace_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to the disk, then put it in ``path``'s place.

    An exception from ``write`` leaves ``path`` as it was.

    Raises:
        OSError: the disk is full, say, also where ``write`` makes another error of that.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb", buffering=0) as raw:
            watched = _Watched(raw)
            with io.BufferedWriter(watched) as file:
                try:
                    write(file)
                except Exception:
                    if watched.failure is not None:
                        raise watched.failure from None
                    raise
                file.flush()
                os.fsync(raw.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class _Watched(io.RawIOBase):
    """A file that remembers why it could not be written: torch raises a ``RuntimeError`` that does not say so."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, content: "ReadableBuffer", /) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.failure = error
            raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by these bytes."""
    replace_atomically(path, lambda file: file.write(content))
