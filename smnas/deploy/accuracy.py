"""AP of the file that will run, beside that of the checkpoint in float32: what an export costs."""

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
"""One point of AP: what rounding to 8 bits usually stays under, and less than what a retraining changes."""


class AccuracyLossError(RuntimeError):
    """The exported file is less accurate than was asked for: nobody's mistake, so a failure of the export."""


@dataclass(frozen=True)
class Accuracy:
    """AP of a file and of its checkpoint on the same images.

    Attributes:
        images: How many.
        reference_ap: AP of the checkpoint, run by PyTorch in float32.
        reference_ap50: Its AP50.
        ap: AP of the file.
        ap50: Its AP50.
        drop: AP that the export costs; negative where the file is better by chance.
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
    """The 12 COCO numbers of a model on images with its categories.

    Args:
        model: The detector.
        dataset: The images.
        batch_size: Images of one call; by default those of one run of the model.
        on_progress: Told how many images are done, and of how many.

    Raises:
        UserError: The images have other categories.
    """
    require_categories(model, dataset)
    size = batch_size or model.metadata.batch
    return evaluate(model, dataset, *model.input_size, size, category_ids=model.category_ids, on_progress=on_progress)


def require_categories(model: Model, dataset: DetectionDataset) -> None:
    """Refuse images whose categories are not the model's, which may have their root category besides.

    Raises:
        UserError: With both.
    """
    theirs = list(zip(dataset.category_ids, dataset.classes, strict=True))
    ours = list(zip(model.category_ids, model.classes, strict=True))
    if ours not in (theirs, sorted([*theirs, *filter(None, [dataset.root_class])])):
        raise UserError(
            f"the data must have the model's categories, {_categories(model)}, but got {_categories(dataset)}"
        )


def measure_accuracy(reference: Model, exported: Model, dataset: DetectionDataset) -> tuple[Accuracy, CocoMetrics]:
    """AP of an exported file beside its checkpoint's, and all numbers of the file.

    Raises:
        UserError: The images have other categories.
    """
    before, after = evaluate_model(reference, dataset), evaluate_model(exported, dataset)
    return Accuracy(len(dataset), before.ap, before.ap50, after.ap, after.ap50), after


def _categories(holder: Model | DetectionDataset) -> str:
    pairs = zip(holder.category_ids, holder.classes, strict=True)
    return ", ".join(f"{number} {name}" for number, name in pairs)
