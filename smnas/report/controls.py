"""What the entropy is worth on a run's own trained detectors, wherever a run used it."""

from dataclasses import dataclass

from smnas.report.run_folder import RunFolder, Trial
from smnas.scoring.controls import ControlGroup, TrainedDetector, control_table
from smnas.scoring.entropy import ENTROPY_FORMS
from smnas.space.architecture import Architecture

__all__ = ["Controls", "entropy_controls", "trained_detectors"]


@dataclass(frozen=True)
class Controls:
    """The table.

    Attributes:
        score: The entropy that the run used.
        epochs: The budget of the training runs that it is held against.
        groups: All detectors, and those of a narrow band.
    """

    score: str
    epochs: int
    groups: tuple[ControlGroup, ...]


def entropy_controls(run: RunFolder) -> Controls | None:
    """The table of a run that used an entropy, over the budget with the most trained detectors; None for others."""
    used = run.settings.scorer if run.settings.scorer in ENTROPY_FORMS else run.settings.prior
    budgets = trained_detectors(run)
    if used is None or not budgets:
        return None
    epochs = max(budgets, key=lambda budget: (len(budgets[budget]), budget))
    return Controls(used, epochs, control_table(budgets[epochs], ENTROPY_FORMS[used], score=used))


def trained_detectors(run: RunFolder) -> dict[int, list[TrainedDetector]]:
    """By epochs: the architectures that were trained so long, with the mean AP over their seeds."""
    found: dict[tuple[int, str], list[Trial]] = {}
    for trial in run.trials:
        whole = trial.stop_epoch is None  # what stopped on the way has the AP of fewer epochs
        if whole and trial.ap is not None and trial.epochs and trial.flops and trial.parameters:
            found.setdefault((trial.epochs, trial.architecture), []).append(trial)
    budgets: dict[int, list[TrainedDetector]] = {}
    for (epochs, architecture), trials in found.items():
        first = trials[0]
        detector = TrainedDetector(
            Architecture.parse(architecture),
            sum(trial.ap or 0.0 for trial in trials) / len(trials),
            float(first.flops or 0),
            float(first.parameters or 0),
            first.latency_ms if first.latency_ms is not None else float("nan"),
        )
        budgets.setdefault(epochs, []).append(detector)
    return budgets
