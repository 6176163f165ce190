"""Fixtures shared by the whole suite."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def aquarium_mini() -> Path:
    """The 48-picture real data set beside the repository; tests that need it skip where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data" / "aquarium-mini"
    if not (folder / "annotations" / "instances_train.json").is_file():
        pytest.skip("needs the real pictures of ../shared/data/aquarium-mini, which are not here")
    return folder
