"""What the recommended detector finds on images that it was not trained on."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from profiler.errors import UserError
from smnas.data.coco import CocoFolder
from smnas.inference.detector import Detection, Detector
from smnas.inference.draw import draw_detections, drawn_name
from smnas.report.run_folder import RunFolder

__all__ = ["Sample", "sample_detections"]

_SCORE = 0.3


@dataclass(frozen=True)
class Sample:
    """An image for the page, its boxes already drawn."""

    caption: str
    image: Image.Image


def sample_detections(run: RunFolder, count: int = 6, data: Path | None = None) -> tuple[Sample, ...]:
    """Draw the winner's detections on validation images, spread evenly over the split.

    Args:
        run: Its recommended row names the exported file.
        count: How many images at most.
        data: The data set; by default where it was at the time of the search.

    Raises:
        UserError: No exported winner, or the data set is not there any more.
    """
    winner = run.winner
    if winner is None or winner.model is None:
        raise UserError("sample detections need an exported detector, but the run folder recommends none that is")
    facts = run.settings.data
    root = data or Path(facts.root)
    folder = CocoFolder(root, drop_bad_boxes=facts.drop_bad_boxes, drop_bad_images=facts.drop_bad_images)
    dataset = folder.split("val")
    detector = Detector(run.path / winner.model, score=_SCORE)
    shown = min(count, len(dataset))
    samples = []
    for index in (number * len(dataset) // shown for number in range(shown)):
        pixels = dataset.image(index)
        (found,) = detector([pixels])
        names = ", ".join(dict.fromkeys(_named(one) for one in found)) or f"nothing with a score of {_SCORE} or more"
        samples.append(Sample(f"{dataset.path(index).name}: {names}", draw_detections(pixels, found)))
    return tuple(samples)


def _named(found: Detection) -> str:
    """A class's name, behind its number where no font has the letters for the image."""
    drawn = drawn_name(found.name, found.category_id)
    return found.name if drawn == found.name else f"{drawn} {found.name}"
