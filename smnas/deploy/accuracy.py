"""AP of the exported file beside that of the checkpoint in float32."""

from collections.abc import Callable
from dataclasses import dataclass, field

from profiler.errors import UserError
from smnas.data.coco import DetectionDataset
from smnas.evaluation.coco_eval import CocoMetrics
from smnas.evaluation.predict import evaluate
from smnas.inference.runtime import Model

__all__ = [
    "DEFAULT_MAX_AP_DROP",
    "Accuracy",
    "AccuracyLossError",
    "evaluate_model",
    "measure_accuracy",
    "require_categories",
]

DEFAULT_MAX_AP_DROP = 0.01
"""One point of AP: more than rounding to 8 bits usually costs, and less than retraining varies."""


class AccuracyLossError(RuntimeError):
    """The exported file loses more AP than allowed: not a user's mistake, so the export fails."""


@dataclass(frozen=True)
class Accuracy:
    """AP of a file and of its checkpoint on the same images.

    Attributes:
        reference_ap: AP of the checkpoint, run by PyTorch in float32; its AP50 is ``reference_ap50``.
        ap: AP of the file; its AP50 is ``ap50``.
        drop: AP lost by the export; negative where the file is better by chance.
    """

    images: int
    reference_ap: float
    reference_ap50: float
    ap: float
    ap50: float
    drop: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "drop", self.reference_ap - self.ap)

    def __str__(self) -> str:
        return (
            f"AP {self.ap:.4f} (AP50 {self.ap50:.4f}), fp32 checkpoint {self.reference_ap:.4f} "
            f"({self.reference_ap50:.4f}), loss {self.drop:+.4f} on {self.images} images"
        )


def evaluate_model(
    model: Model,
    dataset: DetectionDataset,
    batch_size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> CocoMetrics:
    """Compute the 12 COCO numbers of a model on images with its categories.

    A call has ``batch_size`` images, by default one run of the model; ``on_progress`` gets the numbers of finished and
    of all images.

    Raises:
        UserError: The images have other categories.
    """
    require_categories(model, dataset)
    size = batch_size or model.metadata.batch
    return evaluate(model, dataset, *model.input_size, size, category_ids=model.category_ids, on_progress=on_progress)


def require_categories(model: Model, dataset: DetectionDataset) -> None:
    """Raise a :class:`UserError` unless model and images have the same categories, up to the images' root category."""
    theirs = list(zip(dataset.category_ids, dataset.classes, strict=True))
    ours = list(zip(model.category_ids, model.classes, strict=True))
    if ours not in (theirs, sorted([*theirs, *filter(None, [dataset.root_class])])):
        raise UserError(
            f"the data must have the model's categories, {_categories(model)}, but got {_categories(dataset)}"
        )


def measure_accuracy(reference: Model, exported: Model, dataset: DetectionDataset) -> tuple[Accuracy, CocoMetrics]:
    """Compare an exported file's AP with its checkpoint's; returns all numbers of the file, too.

    Raises:
        UserError: The images have other categories.
    """
    before, after = evaluate_model(reference, dataset), evaluate_model(exported, dataset)
    return Accuracy(len(dataset), before.ap, before.ap50, after.ap, after.ap50), after


def _categories(holder: Model | DetectionDataset) -> str:
    pairs = zip(holder.category_ids, holder.classes, strict=True)
    return ", ".join(f"{number} {name}" for number, name in pairs)
