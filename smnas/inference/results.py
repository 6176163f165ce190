"""What detection gives: results of images and of videos, as one JSON document."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smnas.inference.detections import Detection
from smnas.inference.pipeline import StageTimes

__all__ = ["DetectReport", "FrameResult", "ImageResult", "VideoResult"]


@dataclass(frozen=True)
class ImageResult:
    """What was found on one image.

    Attributes:
        path: The image file.
        width: In pixels; 0 when it could not be read.
        height: In pixels; 0 when it could not be read.
        detections: Best first.
        drawn: The copy with boxes, if one was asked for.
        error: Why nothing could be found, one line; ``None`` when all went well.
        remark: What the result leaves out, one line: the other frames of an animation.
    """

    path: Path
    width: int = 0
    height: int = 0
    detections: tuple[Detection, ...] = ()
    drawn: Path | None = None
    error: str | None = None
    remark: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {**asdict(self), "path": str(self.path), "drawn": None if self.drawn is None else str(self.drawn)}


@dataclass(frozen=True)
class FrameResult:
    """What was found on one frame.

    Attributes:
        frame: Its index, from 0.
        time_s: Since the start of the video, in seconds.
        detections: Best first.
        width: In pixels; the frames of a joined stream may differ.
        height: In pixels.
    """

    frame: int
    time_s: float
    detections: tuple[Detection, ...]
    width: int
    height: int


@dataclass(frozen=True)
class VideoResult:
    """What was found in one video, or through one camera.

    Attributes:
        source: The file, or ``camera`` and its number.
        width: Of the first frame, in pixels; 0 when it could not be opened.
        height: Of the first frame, in pixels; 0 when it could not be opened.
        frames_per_s: On average.
        count: Frames that are done.
        found: How many detections of each class they have.
        frames: Each of them, unless they were not to be kept.
        drawn: The copy with boxes, if one was asked for.
        error: What went wrong, one line; frames may be done all the same.
        remark: What is unusual about it, one line: frames of several sizes.
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

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            **asdict(self),
            "found": dict(self.found),
            "drawn": None if self.drawn is None else str(self.drawn),
        }


@dataclass(frozen=True)
class DetectReport:
    """Everything of one call.

    Attributes:
        images: In the order in which they were given.
        videos: In the order in which they were given, a camera last.
        times: Where the time went.
        interrupted: It was stopped from the keyboard: what was finished by then is here.
        legend: Numbers that stand for class names in drawn copies, where no font has the letters.
    """

    images: tuple[ImageResult, ...] = ()
    videos: tuple[VideoResult, ...] = ()
    times: StageTimes = field(default_factory=StageTimes)
    interrupted: bool = False
    legend: str | None = None

    @property
    def errors(self) -> tuple[str, ...]:
        """A line for every image and video with a problem."""
        errors = [image.error for image in self.images] + [video.error for video in self.videos]
        return tuple(filter(None, errors))

    @property
    def remarks(self) -> tuple[str, ...]:
        """A line for the legend and for every image and video that is unusual."""
        remarks = [image.remark for image in self.images] + [video.remark for video in self.videos]
        return tuple(filter(None, [self.legend, *remarks]))

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "images": [image.to_dict() for image in self.images],
            "videos": [video.to_dict() for video in self.videos],
            "interrupted": self.interrupted,
            "speed": {
                "images": self.times.images,
                "wall_s": self.times.wall_s,
                "images_per_s": self.times.images_per_s,
                "ms_per_image": self.times.ms_per_image(),
            },
        }
