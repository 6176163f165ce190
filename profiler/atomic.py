"""Atomic file writes: killed at any moment, a writer leaves the old file or the new one, complete.

As with ``open``, a new file's mode follows the umask, an existing file keeps its mode, a link keeps pointing to its
target, and anything but a regular file (``/dev/stdout``, a pipe) is written in place.
"""

import io
import os
import secrets
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from profiler.errors import UserError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["replace_atomic", "require_room", "write_atomic"]

_ROOM_BYTES = 1 << 16


def require_room(folder: Path, what: str) -> None:
    """Create a folder and test it with a temporary file of 64 KiB, before minutes of work are lost.

    ``what`` is named in the message, as in ``drawn copies``.

    Raises:
        UserError: the folder can not be created or written to, or its disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_ROOM_BYTES))
            probe.flush()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{what} need a folder that can be written to, but got {folder} ({reason})") from None


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace the file at ``path`` by bytes, or text in UTF-8; creates its folder. Safe with concurrent writers.

    Parts of a file name that are not UTF-8 are written as escapes.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    # short: the file's own name may have the maximum length
    _replace(path, f".{secrets.token_hex(8)}.part", lambda file: file.write(data))


def replace_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill the new file; for large files with one writer at a time.

    The temporary file's name is fixed, so the next writer overwrites what a killed one left.

    Raises:
        OSError: for example a full disk, even if ``write`` raises another error for it.
    """
    _replace(path, f".{path.name}.tmp", write)


def _replace(path: Path, temporary_name: str, write: Callable[[BinaryIO], object]) -> None:
    path = Path(os.path.realpath(path))
    mode = path.stat().st_mode if path.exists() else None
    if mode is not None and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        with path.open("wb") as file:
            write(file)
        return
    temporary = path.with_name(temporary_name)
    try:
        # open applies umask and the folder's default ACL; tempfile would not
        with temporary.open("wb", buffering=0) as raw:
            if mode is not None:
                os.fchmod(raw.fileno(), stat.S_IMODE(mode))
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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)  # a full disk names no file, other errors the temporary one
        raise


class _Watched(io.RawIOBase):
    """File that keeps its write error: torch raises a ``RuntimeError`` without the cause."""

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
