"""The reference score: AP on the validation split after training from scratch."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from profiler.atomic import write_atomic
from profiler.errors import UserError, named_line
from smnas.data.coco import CocoFolder, DetectionDataset
from smnas.data.contents import split_contents
from smnas.data.letterbox import letterbox
from smnas.evaluation.predict import eager_detect, evaluate
from smnas.models.build import build_detector
from smnas.models.detector import Detector
from smnas.models.layers import NormKind
from smnas.models.remapping import match_statistics, start_from
from smnas.scoring.base import AP, VALIDATION_AP, Score, ScoringFailedError, ScoringProgress
from smnas.space.architecture import Architecture
from smnas.space.convolutions import StemKind
from smnas.training.checkpoint import CHECKPOINT_FILE, load_checkpoint, record_metrics
from smnas.training.curve import EpochLog, StepLog, best_epoch
from smnas.training.distributed import ALONE, Ranks
from smnas.training.errors import TrainingFailedError
from smnas.training.fit import fit
from smnas.training.pretrained import Pretrained
from smnas.training.recipe import Recipe

__all__ = ["METRICS_FILE", "TrainedAP", "read_metrics", "write_metrics"]

METRICS_FILE = "metrics.json"
_MATCHED = 32  # training images that the statistics of weights trained with BatchNorm are matched on


class TrainedAP:
    """AP (IoU .50 to .95) after training from scratch.

    The folder of a score holds ``checkpoint.pt`` (weights and metrics), ``curve.jsonl`` and, once complete,
    ``metrics.json``; a complete one is read back, never trained again.

    Args:
        data: Trained on its training split, evaluated on its validation split; :meth:`score_final` on its held-out one.
        recipe: How to train; :meth:`score` sets the epochs.
        device: Where to train.
        automatic: Final runs have an automatic schedule, within their epochs.
        norm, stem: See :class:`~smnas.models.options.DetectorOptions`.
        pretrained: Weights that the backbone starts from; None trains from scratch.
        ranks: DDP ranks that train together; the first one evaluates and writes.
        on_epoch: Called after every epoch.
    """

    name = "ap"
    metric = AP
    trains = True
    stops = True
    strategy = "halving"

    def __init__(
        self,
        data: CocoFolder,
        recipe: Recipe,
        device: torch.device | str = "cpu",
        *,
        automatic: bool = False,
        norm: NormKind = "gn-ws",
        stem: StemKind = "deep",
        pretrained: Pretrained | None = None,
        ranks: Ranks = ALONE,
        on_epoch: Callable[[EpochLog], None] | None = None,
    ) -> None:
        self.recipe = recipe
        self.device = torch.device(device)
        self.automatic = automatic
        self.norm: NormKind = norm
        self.stem: StemKind = stem
        self.pretrained = pretrained
        self.ranks = ranks
        self.on_epoch = on_epoch
        self._data = data
        self._train = data.split("train")
        self._val = data.split("val")
        self._test = data.split("test") if "test" in data.splits else None

    def score(
        self,
        architecture: Architecture,
        *,
        seed: int,
        epochs: int,
        out_dir: Path,
        on_progress: Callable[[ScoringProgress], None] | None = None,
    ) -> Score:
        """Train ``architecture`` for ``epochs`` epochs and evaluate it.

        Raises:
            ScoringFailedError: it diverges, or building, training or evaluating it fails.
            UserError: ``out_dir`` holds another run, or the data cannot be read or has no validation box.
        """
        return self._score(architecture, seed, epochs, None, out_dir, on_progress)

    def score_final(
        self,
        architecture: Architecture,
        *,
        seed: int,
        epochs: int,
        out_dir: Path,
        time_limit_s: float | None = None,
        on_progress: Callable[[ScoringProgress], None] | None = None,
    ) -> Score:
        """Train as :meth:`score` does; the score is of the held-out images, where there are any.

        Then the metrics hold ``validation_ap`` as well. An automatic schedule ends by itself, at the latest after
        ``epochs`` or, as far as it can be planned, at the time limit.

        Raises:
            ScoringFailedError, UserError: as :meth:`score`.
        """
        recipe = self.recipe.with_(schedule="auto" if self.automatic else None)
        return self._score(
            architecture, seed, epochs, None, out_dir, on_progress, recipe, test=self._test, time_limit_s=time_limit_s
        )

    def score_until(
        self,
        architecture: Architecture,
        *,
        seed: int,
        epochs: int,
        stop_epoch: int,
        out_dir: Path,
        on_progress: Callable[[ScoringProgress], None] | None = None,
    ) -> Score:
        """Train until ``stop_epoch`` under the schedule of ``epochs`` and evaluate; see :class:`StoppingScorer`.

        The metrics are kept in ``metrics-epoch-N.json`` and read back from it.

        Raises:
            ScoringFailedError, UserError: as :meth:`score`.
        """
        if stop_epoch >= epochs:
            raise ValueError(f"`stop_epoch < epochs` must hold, but got {stop_epoch} and {epochs}")
        return self._score(architecture, seed, epochs, stop_epoch, out_dir, on_progress)

    def _score(
        self,
        architecture: Architecture,
        seed: int,
        epochs: int,
        stop_epoch: int | None,
        out_dir: Path,
        on_progress: Callable[[ScoringProgress], None] | None,
        recipe: Recipe | None = None,
        *,
        test: DetectionDataset | None = None,
        time_limit_s: float | None = None,
    ) -> Score:
        recipe = (recipe or self.recipe).with_(epochs=epochs)

        def on_step(log: StepLog) -> None:
            if on_progress is not None:
                on_progress(
                    ScoringProgress(
                        phase="train",
                        done=log.share_done,
                        epoch=log.epoch,
                        epochs=log.epochs,
                        loss=log.loss,
                        images_per_s=log.images_per_s,
                        eta_s=log.eta_s,
                    )
                )

        size, smallest = (architecture.input_width, architecture.input_height), recipe.augmentation.min_side_px
        if not self._train.boxes_left(*size, smallest)[0]:
            raise ScoringFailedError(
                f"no training box is {smallest:g} pixels wide and high on an input of {size[0]}x{size[1]}"
            )
        try:
            detector = self._build(architecture, seed)
            digest, started_from = self._start(detector)
            on_the_way = _Evaluations(lambda subject: self._evaluate(subject, recipe, on_progress))
            result = fit(
                detector,
                self._train,
                recipe,
                seed=seed,
                device=self.device,
                ranks=self.ranks,
                out_dir=out_dir,
                pretrained=digest,
                started_from=started_from,
                validation=self._val,
                test=test,
                stop_epoch=stop_epoch,
                time_limit_s=time_limit_s,
                evaluate=on_the_way,
                on_epoch=self.on_epoch,
                on_step=on_step,
            )
            path = out_dir / CHECKPOINT_FILE
            if stop_epoch is None:
                file = out_dir / METRICS_FILE
                known = load_checkpoint(path).info.metrics
                if self.ranks.first and (not known or (VALIDATION_AP in known) != (test is not None)):
                    found = on_the_way.best(result.history) or self._evaluate(detector, recipe, on_progress)
                    if test is not None:
                        on_test = self._evaluate(detector, recipe, on_progress, test)
                        found = {**on_test, VALIDATION_AP: found["ap"]}
                    record_metrics(path, found, {} if test is None else split_contents("test", test))
                self.ranks.wait()  # the other ranks read what the first has written
                metrics = load_checkpoint(path).info.metrics
            else:
                file = out_dir / f"metrics-epoch-{stop_epoch}.json"
                if not file.exists() and result.epochs != stop_epoch:
                    raise ValueError(f"a training can not go back to epoch {stop_epoch}, but is at {result.epochs}")
                metrics = read_metrics(file) if file.exists() else self._evaluate(detector, recipe, on_progress)
        except TrainingFailedError as error:
            raise ScoringFailedError(error.reason) from error
        except (RuntimeError, ValueError, MemoryError) as error:
            # torch's errors of a candidate's shapes, kernels and memory
            raise ScoringFailedError(named_line(error)) from error
        if math.isnan(metrics["ap"]):
            raise UserError("the evaluated split must hold at least one box that is not a crowd, but got none")
        if self.ranks.first:
            write_metrics(file, metrics)
        return Score(
            value=metrics["ap"],
            metrics=metrics,
            seconds=result.seconds,
            epochs=result.epochs,
            checkpoint=path,
            stop_reason=result.stop_reason or None,
        )

    def _build(self, architecture: Architecture, seed: int) -> Detector:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_detector(architecture, len(self._train.classes), norm=self.norm, stem=self.stem)

    def _start(self, detector: Detector) -> tuple[str | None, str]:
        """Load weights to start from, if any; returns their digest and what they are."""
        if self.pretrained is None:
            return None, ""
        start = self.pretrained.seed(detector.architecture.backbone)
        fraction = start_from(detector, start)
        if self.norm != "bn" and self.pretrained.norm == "bn":
            canvases = [letterbox(image, *detector.input_size)[0] for image in self._train.spread(_MATCHED)]
            match_statistics(detector.backbone, torch.from_numpy(np.stack(canvases)).permute(0, 3, 1, 2))
        return start.digest, f"{start.name}, which gives {fraction:.0%} of the backbone's parameters"

    def _evaluate(
        self,
        detector: Detector,
        recipe: Recipe,
        on_progress: Callable[[ScoringProgress], None] | None,
        split: DetectionDataset | None = None,
    ) -> dict[str, float]:
        width, height = detector.input_size
        started = time.perf_counter()

        def report(done: int, total: int) -> None:
            if on_progress is not None:
                seconds = time.perf_counter() - started
                on_progress(
                    ScoringProgress(
                        phase="evaluate",
                        done=done / total,
                        epoch=recipe.epochs,
                        epochs=recipe.epochs,
                        loss=None,
                        images_per_s=done / seconds,
                        eta_s=seconds / done * (total - done),
                    )
                )

        detect = eager_detect(detector, self.device)
        return evaluate(detect, split or self._val, width, height, recipe.batch_size, on_progress=report).as_dict()


class _Evaluations:
    """Evaluations during a training run."""

    def __init__(self, evaluate: Callable[[Detector], dict[str, float]]) -> None:
        self._evaluate = evaluate
        self._by_ap: dict[float, dict[str, float]] = {}

    def __call__(self, detector: Detector) -> tuple[float, float]:
        metrics = self._evaluate(detector)
        self._by_ap.setdefault(metrics["ap"], metrics)
        return metrics["ap"], metrics["ap50"]

    def best(self, history: Sequence[EpochLog]) -> dict[str, float] | None:
        """Metrics of the best evaluated epoch, unless a killed process evaluated it."""
        best = best_epoch(history)
        return None if best is None or best.ap is None else self._by_ap.get(best.ap)


def write_metrics(path: Path, metrics: Mapping[str, float]) -> None:
    """Write metrics as one JSON object, atomically; NaN becomes ``null``."""
    plain = {name: None if math.isnan(value) else value for name, value in metrics.items()}
    write_atomic(path, json.dumps(plain, indent=2) + "\n")


def read_metrics(path: Path) -> dict[str, float]:
    """The inverse of :func:`write_metrics`."""
    plain = json.loads(path.read_text(encoding="utf-8"))
    return {name: math.nan if value is None else float(value) for name, value in plain.items()}
