"""Detections of the recommended detector on validation images."""

from dataclasses import dataclass

from PIL import Image

from profiler.errors import UserError
from smnas.data.coco import CocoFolder
from smnas.inference.detector import Detection, Detector
from smnas.inference.draw import draw_detections, drawn_name
from smnas.report.run_folder import RunFolder
from smnas.search.study.settings import open_data

__all__ = ["Sample", "sample_detections"]

_SCORE = 0.3


@dataclass(frozen=True)
class Sample:
    """An image for the page with its boxes drawn."""

    caption: str
    image: Image.Image


def sample_detections(run: RunFolder, count: int = 6, data: CocoFolder | None = None) -> tuple[Sample, ...]:
    """Draw the winner's detections on validation images, spread evenly over the split.

    Args:
        run: Its recommended row names the exported file.
        count: Most images.
        data: Data set; by default the search's, where it was last found.

    Raises:
        UserError: no exported winner, or no data set, or another one.
    """
    winner = run.winner
    if winner is None or winner.model is None:
        raise UserError("sample detections need an exported detector, but the run folder recommends none that is")
    dataset = (data or open_data(run.path, run.settings.data)).split("val")
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
    """Name of a class, behind its number if no font has its letters."""
    drawn = drawn_name(found.name, found.category_id)
    return found.name if drawn == found.name else f"{drawn} {found.name}"
