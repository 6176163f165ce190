"""Every strategy proposes, bit by bit, what it proposed before, and the ranking is the same."""

import json

import pytest
from golden_search import CASES, FOLDER, play

from smnas.search.strategies.by_name import STRATEGIES


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_search_is_what_it_was(case: str) -> None:
    expected = json.loads((FOLDER / f"{case}.json").read_text())
    found = play(case)
    for part in expected:
        assert found[part] == expected[part], f"{case}: {part}"


def test_every_strategy_has_a_case() -> None:
    assert set(STRATEGIES) <= set(CASES)
