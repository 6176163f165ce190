"""These tests run in a process of their own, which ``tests/kernels/test_triton.py`` starts.

Triton decides when it is loaded whether it interprets kernels, and PyTorch loads it at moments of its own choosing. So
``TRITON_INTERPRET=1`` must be in the environment from the start, and the other tests must not see it.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["*"]
