"""Fixtures shared by the whole suite."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Test networks are so small that a second thread only waits for the first, and badly so on a busy machine. Set before
# torch is loaded, and in the environment, so that commands which tests start are alike.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# On a busy machine an example may take any time; what takes too long shows in --durations.
settings.register_profile("smnas", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("smnas")

REPOSITORY = Path(__file__).resolve().parents[1]

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # importing OpenVINO sends nothing


@pytest.fixture(scope="session")
def aquarium_mini() -> Path:
    """The 48-image real data set beside the repository; tests that need it skip where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data" / "aquarium-mini"
    if not (folder / "annotations" / "instances_train.json").is_file():
        pytest.skip("needs the real images of ../shared/data/aquarium-mini, which are not here")
    return folder
