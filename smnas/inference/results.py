"""Results of detection on images and videos, as one JSON document."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smnas.inference.detections import Detection
from smnas.inference.pipeline import StageTimes

__all__ = ["DetectReport", "FrameResult", "ImageResult", "VideoResult"]


@dataclass(frozen=True)
class ImageResult:
    """Detections on one image.

    Attributes:
        width: In pixels, as is ``height``; both 0 if unreadable.
        detections: Best first.
        error: One line; ``None`` on success.
        remark: One line about omissions: the other frames of an animation.
    """

    path: Path
    width: int = 0
    height: int = 0
    detections: tuple[Detection, ...] = ()
    drawn: Path | None = None
    error: str | None = None
    remark: str | None = None


@dataclass(frozen=True)
class FrameResult:
    """Detections on one frame.

    Attributes:
        frame: Index, from 0.
        time_s: Since the start of the video, in seconds.
        detections: Best first.
        width: In pixels, as is ``height``; the frames of a joined stream may differ.
    """

    frame: int
    time_s: float
    detections: tuple[Detection, ...]
    width: int
    height: int


@dataclass(frozen=True)
class VideoResult:
    """Detections in one video or camera stream.

    Attributes:
        source: The file, or ``camera`` and its number.
        width: Of the first frame, in pixels, as is ``height``; 0 if it could not be opened.
        found: Number of detections by class in the finished frames.
        frames: Unless they were not to be kept.
        error: One line; frames may be finished all the same.
        remark: One line about frames of several sizes.
    """

    source: str
    width: int = 0
    height: int = 0
    frames_per_s: float = 0.0
    count: int = 0
    found: Counter[str] = field(default_factory=Counter)
    frames: tuple[FrameResult, ...] = ()
    drawn: Path | None = None
    error: str | None = None
    remark: str | None = None


@dataclass(frozen=True)
class DetectReport:
    """Results of one call.

    Attributes:
        images: In the given order.
        videos: In the given order, a camera last.
        interrupted: Stopped from the keyboard; finished results are here.
        legend: Numbers for class names that no font can draw.
    """

    images: tuple[ImageResult, ...] = ()
    videos: tuple[VideoResult, ...] = ()
    times: StageTimes = field(default_factory=StageTimes)
    interrupted: bool = False
    legend: str | None = None

    @property
    def errors(self) -> tuple[str, ...]:
        """One line for every image and video with a problem."""
        errors = [image.error for image in self.images] + [video.error for video in self.videos]
        return tuple(filter(None, errors))

    @property
    def remarks(self) -> tuple[str, ...]:
        """Lines for the legend and for every unusual image and video."""
        remarks = [image.remark for image in self.images] + [video.remark for video in self.videos]
        return tuple(filter(None, [self.legend, *remarks]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "images": list(map(_plain, self.images)),
            "videos": list(map(_plain, self.videos)),
            "interrupted": self.interrupted,
            "speed": {
                "images": self.times.images,
                "wall_s": self.times.wall_s,
                "images_per_s": self.times.images_per_s,
                "ms_per_image": self.times.ms_per_image(),
            },
        }


def _plain(result: ImageResult | VideoResult) -> dict[str, Any]:
    values = asdict(result).items()
    return {name: str(one) if isinstance(one, Path) else dict(one) if name == "found" else one for name, one in values}
