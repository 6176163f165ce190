"""Video files and cameras as frames, and frames as a video file, through PyAV."""

import importlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from profiler.errors import BackendUnavailableError, UserError
from smnas.data.image import Decoded

__all__ = [
    "VIDEO_SUFFIXES",
    "VideoError",
    "VideoFrame",
    "VideoReader",
    "VideoWriter",
    "open_camera",
    "open_video",
    "video_version",
]

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp"}
)
_TICKS_PER_S = 90_000  # the clock of MPEG: every usual frame rate is a whole number of ticks
_USUAL_RATE = 30
# H.264 plays everywhere; a build of FFmpeg without its encoder has that of MPEG-4.
_ENCODERS = ("libx264", "mpeg4")


class VideoError(UserError):
    """A video that can not be opened, or a camera that is not there."""


@dataclass(frozen=True)
class VideoFrame:
    """One frame.

    Attributes:
        index: From 0.
        time_s: Since the start of the video, in seconds; by the frame rate where the frames carry no time.
        read_s: What reading and decoding it took.
        content: PyAV's frame.
    """

    index: int
    time_s: float
    read_s: float
    content: Any

    def decoded(self) -> Decoded:
        """The frame in RGB, turned as the video says, as phones write it."""
        upright: Image.Image = self.content.to_image()
        turns = round(self.content.rotation / 90) % 4
        if turns:
            upright = Image.fromarray(np.ascontiguousarray(np.rot90(np.asarray(upright), turns)))
        return Decoded(upright)


class VideoReader:
    """The frames of an open video or camera, once, in order.

    What can not be decoded is left out, and the frames go on behind it; :attr:`problem` says so afterwards.

    Args:
        container: As PyAV opened it.
        name: For messages.

    Attributes:
        name: For messages.
        frames: How many frames there are, as the file states or as its length suggests; ``None`` where nobody knows.
        rate: Frames a second, on average.

    Raises:
        VideoError: There are no images in it.
    """

    def __init__(self, container: Any, name: str) -> None:
        self.name = name
        self._container = container
        if not container.streams.video:
            container.close()
            raise VideoError(f"a video must hold images, but {name} has none")
        self._stream = container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.rate = float(self._stream.average_rate or _USUAL_RATE)
        self.frames = self._stated_frames()
        self._damaged = 0
        self._broke_off: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    @property
    def problem(self) -> str | None:
        """What was wrong with the part that was read, one line; ``None`` when all was well."""
        rule = f"a video must be whole, but {self.name}"
        if self._broke_off is not None:
            return f"{rule} breaks off ({self._broke_off})"
        return f"{rule} is damaged (packets left out: {self._damaged})" if self._damaged else None

    def __iter__(self) -> Iterator[VideoFrame]:
        """The frames; where reading fails, as when a camera is unplugged, they end."""
        first: float | None = None
        began = time.perf_counter()
        for index, frame in enumerate(self._decoded()):
            now = index / self.rate if frame.time is None else float(frame.time)
            first = now if first is None else first
            yield VideoFrame(index, now - first, time.perf_counter() - began, frame)
            began = time.perf_counter()

    def _decoded(self) -> Iterator[Any]:
        errors = _av().error
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except errors.FFmpegError as error:
                self._broke_off = _reason(error)
                return
            if packet is None:
                return
            self._damaged += packet.is_corrupt
            try:
                frames = packet.decode()
            except errors.FFmpegError:
                self._damaged += not packet.is_corrupt
                continue
            yield from frames

    def _stated_frames(self) -> int | None:
        if self._stream.frames:
            return int(self._stream.frames)
        length = self._container.duration  # in microseconds
        return round(length / 1e6 * self.rate) if length and length > 0 else None


def open_video(path: Path) -> VideoReader:
    """Open a video file.

    Raises:
        VideoError: It is missing, or no video.
        BackendUnavailableError: PyAV is not installed.
    """
    if not path.is_file():
        raise VideoError(f"a video must be an existing file, but got {path}")
    return _open(str(path), str(path), None)


def open_camera(index: int) -> VideoReader:
    """Open a camera by its number.

    Raises:
        VideoError: There is no such camera, it is in use, or this system's cameras have no numbers.
        BackendUnavailableError: PyAV is not installed.
    """
    file, kind = _camera(index)
    return _open(file, f"camera {index}", kind)


class VideoWriter:
    """Writes RGB images as an ``.mp4`` file without sound, each shown from its time on.

    The file is made with the first image and whole once the writer is closed.

    Args:
        path: The file; an older one is replaced.
        rate: Frames a second, on average: what the encoder plans with.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self._rate = Fraction(rate).limit_denominator(1001)
        self._container: Any = None
        self._last_tick = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, image: Image.Image, time_s: float) -> None:
        """Add an image. All have the first one's size.

        Raises:
            OSError: The file can not be written.
        """
        av = _av()
        try:
            if self._container is None:
                self._open(av, *image.size)
            frame = av.VideoFrame.from_ndarray(_even(np.asarray(image)), format="rgb24")
            self._last_tick = max(self._last_tick + 1, round(time_s * _TICKS_PER_S))
            frame.pts, frame.time_base = self._last_tick, Fraction(1, _TICKS_PER_S)
            self._container.mux(self._stream.encode(frame))
        except av.error.FFmpegError as error:
            raise OSError(f"{self.path} can not be written: {error}") from None

    def close(self) -> None:
        """Write what is still in the encoder and finish the file; nothing was written, no file."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            container.mux(self._stream.encode(None))
        finally:
            container.close()

    def _open(self, av: Any, width: int, height: int) -> None:
        encoder = next(name for name in _ENCODERS if name in av.codecs_available)
        self._container = av.open(str(self.path), "w", format="mp4", options={"movflags": "faststart"})
        self._stream = self._container.add_stream(encoder, rate=self._rate)
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS_PER_S)


def video_version() -> str:
    """The version of PyAV.

    Raises:
        BackendUnavailableError: It is not installed.
    """
    return str(_av().__version__)


def _even(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A last column and row twice where their number is odd: colours are stored for two by two pixels."""
    height, width = pixels.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return pixels
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _camera(index: int) -> tuple[str, str]:
    """What FFmpeg opens for the camera of that number: a name and a format."""
    if sys.platform == "darwin":
        return str(index), "avfoundation"
    if not sys.platform.startswith("linux"):
        raise VideoError(f"a camera is opened by its number on Linux and macOS only, but this is {sys.platform}")
    device = Path(f"/dev/video{index}")
    if not device.exists():
        there = ", ".join(sorted(path.name.removeprefix("video") for path in Path("/dev").glob("video[0-9]*")))
        raise VideoError(f"a camera must be there, but got {index}; there is {there or 'no camera at all'}")
    return str(device), "v4l2"


def _open(file: str, name: str, kind: str | None) -> VideoReader:
    av = _av()
    try:
        container = av.open(file, format=kind)
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"a video must be readable, but {name} is not: {_reason(error)}") from None
    return VideoReader(container, name)


def _reason(error: BaseException) -> str:
    """FFmpeg's words without the number and the file name around them."""
    return str(getattr(error, "strerror", None) or error)


def _av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError:
        raise BackendUnavailableError(
            "reading and writing video needs PyAV, which is not installed: pip install 'smnas[video]'"
        ) from None
