"""Scores and finalists from shared weights: one network that holds every candidate, trained before the first score."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from profiler.errors import UserError, named_line
from smnas.data.coco import CocoFolder
from smnas.evaluation.predict import eager_detect, evaluate
from smnas.models.detector import Detector
from smnas.scoring.base import Score, ScoringFailedError, ScoringProgress
from smnas.scoring.trained_ap import TrainedAP, read_metrics, write_metrics
from smnas.space.architecture import Architecture
from smnas.supernet.supernet import Supernet
from smnas.supernet.training import SUPERNET, train_supernet
from smnas.training.checkpoint import CHECKPOINT_FILE
from smnas.training.recipe import Recipe

if TYPE_CHECKING:
    from smnas.search.context import SearchContext

__all__ = ["FineTunedAP", "SharedAP"]

_METRICS_FILE = "shared-ap.json"
_RUNS = 10  # the shared weights train for the epochs of this many candidates, by default


class SharedAP:
    """AP on the validation split with the candidate's slice of the shared weights, without training.

    Args:
        data: The shared weights train on its training split; candidates are evaluated on its validation split.
        recipe: Its batch size is that of evaluation.
        device: Where to train and evaluate.
    """

    name = "shared-ap"
    metric = "AP with shared weights"
    trains = False
    stops = False
    strategy = "nsga2"
    finals: ClassVar = {"fine-tune": "fine-tuned-ap", "scratch": "ap"}
    remark = "Candidates were scored by their AP with shared weights, without training of their own."

    def __init__(self, data: CocoFolder, recipe: Recipe, device: torch.device | str = "cpu") -> None:
        self._data, self._recipe, self._device = data, recipe, device
        self._val = data.split("val")
        self._supernet: Supernet | None = None

    def prepare(self, context: "SearchContext") -> None:
        """Train the shared weights in the run folder, or read them; see :class:`PreparingScorer`."""
        self._supernet = _prepared(context, self._data, self._device)

    def score(
        self,
        architecture: Architecture,
        *,
        seed: int,
        epochs: int,
        out_dir: Path,
        on_progress: Callable[[ScoringProgress], None] | None = None,
    ) -> Score:
        """Evaluate ``architecture``; seed and epochs are ignored. A stored score is read back.

        Raises:
            ScoringFailedError: the shared weights do not hold it.
            UserError: the data cannot be read or has no validation box.
        """
        file = out_dir / _METRICS_FILE
        if file.exists():
            metrics = read_metrics(file)
        else:
            try:
                detect = eager_detect(_require(self._supernet).extract(architecture), self._device)
            except UserError as error:
                raise ScoringFailedError(named_line(error)) from error
            size = architecture.input_width, architecture.input_height
            metrics = evaluate(detect, self._val, *size, self._recipe.batch_size).as_dict()
            if math.isnan(metrics["ap"]):
                raise UserError("the validation split must hold at least one box that is not a crowd, but got none")
            out_dir.mkdir(parents=True, exist_ok=True)
            write_metrics(file, metrics)
        return Score(metrics["ap"], metrics)


class FineTunedAP(TrainedAP):
    """AP after training from the candidate's slice of the shared weights; arguments as of :class:`TrainedAP`."""

    name = "fine-tuned-ap"
    finals: ClassVar = {"fine-tune": "fine-tuned-ap"}

    _supernet: Supernet | None = None
    _digest = ""

    def prepare(self, context: "SearchContext") -> None:
        """Train the shared weights in the run folder, or read them; see :class:`PreparingScorer`."""
        self._supernet = _prepared(context, self._data, self.device)
        with (context.folder / SUPERNET / CHECKPOINT_FILE).open("rb") as file:
            self._digest = hashlib.file_digest(file, "sha256").hexdigest()[:10]

    def _start(self, detector: Detector) -> tuple[str, str]:
        supernet = _require(self._supernet)
        detector.load_state_dict(supernet.extract(detector.architecture).state_dict())
        return self._digest, f"the {supernet.label}, which gives all parameters"


def _prepared(context: "SearchContext", data: CocoFolder, device: torch.device | str) -> Supernet:
    settings = context.settings
    recipe = Recipe.parse(settings.recipe).with_(epochs=settings.supernet_epochs or _RUNS * settings.epochs)
    return train_supernet(
        context.space,
        data,
        recipe,
        out_dir=context.folder / SUPERNET,
        seed=settings.seed,
        norm=settings.norm,
        device=device,
        on_step=lambda log: context.on_progress("training shared weights, %", log.share_done),
    )


def _require(supernet: Supernet | None) -> Supernet:
    if supernet is None:
        raise RuntimeError("`prepare` must be called before the first score")
    return supernet
