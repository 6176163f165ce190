"""A disk that is full, instead of a real one: files of this process may grow to a size and not beyond it."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["full_after"]


@contextmanager
def full_after(size_bytes: int) -> Iterator[None]:
    """Writing more than ``size_bytes`` into a file fails with ``EFBIG``, where a full disk says ``ENOSPC``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))  # Python ignores the signal that comes with it
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
