"""Starts the tests of the Triton kernels: in Triton's interpreter, in a process of their own (see their conftest)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


INTERPRETED = sorted(map(str, (HERE / "interpreted").glob("test_*.py")))


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])
def test_the_kernels_pass_their_tests_in_the_interpreter(half: int) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *INTERPRETED[half::2]]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop("SMNAS_KERNELS", None)
    ended = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, timeout=1800)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    last = ended.stdout.strip().splitlines()[-1]
    passed = re.search(r"(\d+) passed", last)
    assert passed is not None, last
    assert int(passed[1]) > 0
    assert "skipped" not in last
