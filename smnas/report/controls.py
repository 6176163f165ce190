"""Worth of a training-free score on the trained detectors of a run that used one."""

import math
from collections import defaultdict
from dataclasses import dataclass

from smnas.report.run_folder import RunFolder
from smnas.scoring.base import AP
from smnas.scoring.by_name import SCORERS, quick_score
from smnas.scoring.controls import ControlGroup, TrainedDetector, control_table
from smnas.search.study.candidate import Candidate
from smnas.space.architecture import Architecture

__all__ = ["Controls", "score_controls", "trained_detectors"]


@dataclass(frozen=True)
class Controls:
    """The table.

    Attributes:
        score: The training-free score of the run.
        epochs: Epochs of the training runs that it is compared with.
        groups: All detectors, and those of a narrow band.
    """

    score: str
    epochs: int
    groups: tuple[ControlGroup, ...]


def score_controls(run: RunFolder) -> Controls | None:
    """Table of a run with a training-free score, over the epochs with the most trained detectors; None without one."""
    used = run.settings.prior if run.settings.trains else run.settings.scorer
    budgets = trained_detectors(run)
    if used is None or not budgets:
        return None
    epochs = max(budgets, key=lambda budget: (len(budgets[budget]), budget))
    known = {c.architecture: c.point[0] for c in run.trials if c.state == "complete" and c.metric != AP}
    quick = quick_score(used) if used in SCORERS else None
    if quick is not None:
        known |= {d.architecture: quick(d.architecture) for d in budgets[epochs]}
    scores = [known.get(d.architecture, math.nan) for d in budgets[epochs]]
    return Controls(used, epochs, control_table(budgets[epochs], scores, used))


def trained_detectors(run: RunFolder) -> dict[int, list[TrainedDetector]]:
    """Architectures by their number of epochs, with the mean AP over seeds."""
    found: defaultdict[tuple[int, Architecture], list[Candidate]] = defaultdict(list)
    for trial in run.trials:
        whole = trial.stop_epoch is None  # a stopped run has the AP of fewer epochs
        if whole and trial.state == "complete" and trial.metric == AP and trial.flops and trial.parameters:
            found[trial.epochs, trial.architecture].append(trial)
    budgets: dict[int, list[TrainedDetector]] = {}
    for (epochs, architecture), trials in found.items():
        first = trials[0]
        ap = sum(trial.point[0] for trial in trials) / len(trials)
        size = float(first.flops or 0), float(first.parameters or 0)
        budgets.setdefault(epochs, []).append(TrainedDetector(architecture, ap, *size, first.point[1]))
    return budgets
