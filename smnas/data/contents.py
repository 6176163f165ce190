"""What a data set contains, which makes it the same one wherever it lies: classes, counts and digests of its splits."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smnas.data.coco import CocoFolder, DetectionDataset, Split

__all__ = ["CONTENTS", "contents", "difference", "split_contents"]

# in the order in which a difference is named
CONTENTS = {
    "classes": "classes",
    "category_ids": "category ids",
    "train_images": "training images",
    "val_images": "validation images",
    "train_boxes": "training boxes",
    "val_boxes": "validation boxes",
    "test_images": "test images",
    "test_boxes": "test boxes",
    "train_digest": "training images",
    "val_digest": "validation images",
    "test_digest": "test images",
}
"""Facts about a data set, each with its name in a message."""


def split_contents(name: "Split", dataset: "DetectionDataset") -> dict[str, Any]:
    """Return the number of images and boxes of a split, and its digest."""
    return {f"{name}_images": len(dataset), f"{name}_boxes": dataset.box_count, f"{name}_digest": dataset.digest}


def contents(folder: "CocoFolder") -> dict[str, Any]:
    """Return all that :data:`CONTENTS` names, of a held-out split where the folder has one."""
    found: dict[str, Any] = {"classes": folder.classes, "category_ids": folder.category_ids}
    for name in folder.splits:
        found |= split_contents(name, folder.split(name))
    return found


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first difference between two data sets in words; what one of them does not know is not compared."""
    for name, what in CONTENTS.items():
        old, new = before.get(name), now.get(name)
        if old and new and old != new:
            if isinstance(new, int):
                return f"{new} {what} instead of {old}"
            if not isinstance(new, str):
                return f"{what} {', '.join(map(str, new))} instead of {', '.join(map(str, old))}"
            same_images = old.partition("-")[0] == new.partition("-")[0]
            return f"other {'boxes, or classes of boxes, on' if same_images else 'names or sizes of'} {what}"
    return None
