"""The loop of a search and its device elsewhere, killed a few times."""

from pathlib import Path

import pytest

from benchmarks.reliability.loop_kills import kill_loops


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_kills_lose_nothing_measured(tmp_path: Path) -> None:
    found = kill_loops(2, seed=1, root=tmp_path)
    assert found.kills >= 2
    assert (found.rows.lost, found.rows.changed, found.damaged_tables) == (0, 0, 0)
    assert (found.trials.lost, found.trials.changed, found.other_rankings) == (0, 0, 0)
