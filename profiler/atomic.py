"""Files that are there whole or not at all."""

import os
import secrets
import stat
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file at ``path``, making its folder; killed at any moment, the old one or the new one is there.

    As with ``open``, a new file's mode follows the umask, an existing one keeps its mode, a link keeps pointing to its
    target, and what is no regular file (``/dev/stdout``, a pipe) is written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path = Path(os.path.realpath(path))
    mode = path.stat().st_mode if path.exists() else None
    if mode is not None and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        path.write_bytes(content)
        return
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")  # short: the file's own name may be as long as allowed
    try:
        # the system applies umask and the folder's default ACL, as tempfile would not
        with temporary.open("xb") as stream:
            if mode is not None:
                os.fchmod(stream.fileno(), stat.S_IMODE(mode))
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk names no file, others name the temporary one
        raise
