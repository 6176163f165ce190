"""Which choices mattered, against numbers that are made so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smnas.report.importance import explained, importances
from smnas.report.page import render_report
from smnas.report.run_folder import RunFolder, read_run_folder
from smnas.search.study.candidate import Candidate
from smnas.space.architecture import Architecture


def test_a_share_is_that_of_the_variance_between_groups() -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(3000) % 3
    noise = rng.normal(0, 1, 3000)
    assert explained(groups.tolist(), (2.0 * groups + noise).tolist()) == pytest.approx((8 / 3) / (8 / 3 + 1), abs=0.02)
    assert explained(groups.tolist(), noise.tolist()) < 0.01
    assert explained([1, 1, 2, 2], [5.0, 5.0, 5.0, 5.0]) == 0.0
    assert explained([1, 2, 3], [1.0, 2.0, 3.0]) == 0.0, "a group for each value explains nothing"


def made(run: RunFolder, count: int) -> RunFolder:
    """AP follows the pyramid's width, latency the input's."""
    rng = np.random.default_rng(1)
    trials = []
    for number in range(count):
        width, size = int(rng.choice([32, 48, 64])), int(rng.choice([96, 128, 160]))
        architecture = Architecture.parse(f"basicblock_16_1-21-21+fpn_2-4_{width}+rpn+rcnn_128+{size}x{size}")
        trials.append(
            Candidate(
                number,
                architecture,
                "structural",
                "random",
                None,
                "complete",
                seed=0,
                epochs=3,
                score=width / 100 + rng.normal(0, 0.01),
                latency_ms=size / 10 * float(np.exp(rng.normal(0, 0.01))),
            )
        )
    return replace(run, trials=tuple(trials))


@pytest.mark.slow
def test_choices_are_ranked_by_what_they_explain(run_folder: Path) -> None:
    run = made(read_run_folder(run_folder), 60)
    found = {row.choice: row for row in importances(run)}
    assert set(found) == {"fpn_width", "input_width", "input_height"}, "what never differs is left out"
    assert found["fpn_width"].ap > 0.95
    assert found["fpn_width"].latency < 0.2
    assert found["input_width"].latency > 0.95
    assert "Which choices mattered" in render_report(run)
    assert importances(made(run, 9)) == ()
