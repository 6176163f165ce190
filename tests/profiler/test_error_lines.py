"""What libraries raise, in a line: pages of it, several lines, or nothing at all."""

import pytest

from profiler.errors import first_line, named_line, one_line


@pytest.mark.parametrize(
    ("error", "first", "named", "one"),
    [
        (ValueError("odd"), "odd", "ValueError: odd", "odd"),
        (RuntimeError("\n  kernel too large \nadvice"), "kernel too large", None, "kernel too large advice"),
        (RuntimeError(), "RuntimeError", "RuntimeError", "RuntimeError"),
        (MemoryError(" \n"), "MemoryError", "MemoryError", "MemoryError"),
    ],
)
def test_an_error_is_a_line(error: Exception, first: str, named: str | None, one: str) -> None:
    assert first_line(error) == first
    assert named_line(error) == (named or f"{type(error).__name__}: {first}")
    assert one_line(error) == one


def test_a_long_line_is_cut_and_says_so() -> None:
    assert first_line(ValueError("x" * 300)) == "x" * 300
    assert first_line(ValueError("x" * 301)) == "x" * 297 + "..."
