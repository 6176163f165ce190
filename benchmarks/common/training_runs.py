"""Training runs in parallel, as a search makes them."""

import os
from pathlib import Path

import torch

from smnas.scoring.by_name import ScorerOnDevices
from smnas.scoring.workers.processes import Workers
from smnas.training.recipe import Recipe


def training_workers(data: Path, recipe: Recipe, workers: int) -> Workers:
    """Processes that train detectors and evaluate their AP: on the GPUs, or on the CPU where there are none."""
    devices = tuple(f"cuda:{index}" for index in range(torch.cuda.device_count())) or ("cpu",)
    make = ScorerOnDevices("ap", data.resolve(), recipe, devices)
    return Workers(make, workers, max(1, (os.cpu_count() or 1) // workers))
