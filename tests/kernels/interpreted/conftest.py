"""These tests run in a process of their own, which ``tests/kernels/test_triton.py`` starts.

Triton decides when it is loaded whether it interprets kernels, and PyTorch loads it at moments of its own choosing. So
``TRITON_INTERPRET=1`` must be in the environment from the start, and the other tests must not see it.
"""

import os
from collections.abc import Iterator

import numpy as np
import pytest

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["*"]


@pytest.fixture(autouse=True)
def silent_numpy() -> Iterator[None]:
    """The interpreter computes in NumPy, which warns of infinities and NaN where a GPU says nothing."""
    with np.errstate(all="ignore"):
        yield
