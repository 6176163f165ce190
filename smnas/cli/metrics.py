"""Display of the 12 COCO metrics."""

from collections.abc import Mapping

from rich.console import Console

from smnas.cli.terminal.console import show_facts

__all__ = ["show_metrics"]

_TITLES = {
    "ap": "AP (IoU .50 to .95)",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP, small objects (area below 32 x 32)",
    "ap_medium": "AP, medium objects",
    "ap_large": "AP, large objects (area above 96 x 96)",
    "ar1": "AR, 1 detection per image",
    "ar10": "AR, 10 detections",
    "ar100": "AR, 100 detections",
    "ar_small": "AR, small objects",
    "ar_medium": "AR, medium objects",
    "ar_large": "AR, large objects",
    "validation_ap": "AP on the validation images (the others: on held-out ones)",
}


def show_metrics(console: Console, metrics: Mapping[str, float]) -> None:
    """Print one metric a line, 0 to 1; a dash if the data has no object of that size."""
    show_facts(console, [(title, metrics[name]) for name, title in _TITLES.items() if name in metrics])
