"""A disk that is full, instead of a real one: files of this process may grow to a size and not beyond it."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["full_after"]


@contextmanager
def full_after(size_bytes: int) -> Iterator[None]:
    """Writing more than ``size_bytes`` into a file fails with ``EFBIG``, where a full disk says ``ENOSPC``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal that comes with it, until a library that it loads decides otherwise
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
