"""Opening the data set that a command names."""

from pathlib import Path
from typing import TYPE_CHECKING

from smnas.cli.terminal.console import Output
from smnas.cli.terminal.progress import Steps

if TYPE_CHECKING:
    from smnas.data.coco import CocoFolder

__all__ = ["check_images", "open_data"]


def open_data(root: Path, output: Output, *, drop_bad_boxes: bool) -> "CocoFolder":
    """The checked folder; a line for each thing that was left out.

    Raises:
        DataError: it breaks a rule.
    """
    from smnas.data.coco import CocoFolder

    folder = CocoFolder(root, drop_bad_boxes=drop_bad_boxes)
    for note in folder.notes:
        output.note(note)
    return folder


def check_images(folder: "CocoFolder", output: Output) -> None:
    """Decode the validation images once: a training reads its own in its first minutes, and these at its end.

    Raises:
        DataError: one can not be decoded, or is not of the size that its annotations state.
    """
    before = folder.notes
    with Steps(output, "checking validation images") as steps:
        folder.split("val").require_decodable(steps.at)
    for note in folder.notes:
        if note not in before:
            output.note(note)
