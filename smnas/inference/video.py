"""Video files and cameras as frames, and frames as a video file, through PyAV."""

import importlib
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image, ImageOps

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

# FFmpeg's containers, then its raw streams of images
_SUFFIXES = """
.3g2 .3gp .3gp2 .3gpp .amv .asf .avi .dav .dif .divx .dv .dvr-ms .f4v .flv .gxf .insv .ismv .lrv .m1v .m2p .m2t .m2ts
.m2v .m4v .mj2 .mk3d .mkv .mod .mov .mp4 .mp4v .mpe .mpeg .mpg .mpv .mts .mxf .nsv .nut .ogm .ogv .ogx .psp .qt .rm
.rmvb .rv .tod .tp .trp .ts .vob .vro .webm .wm .wmv .wtv .xvid
.264 .265 .266 .av1 .avc .cavs .drc .h261 .h263 .h264 .h265 .h266 .h26l .hevc .ivf .mjpeg .mjpg .obu .vc1 .vvc .y4m
"""
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())
_TICKS_PER_S = 90_000  # the clock of MPEG: every usual frame rate is a whole number of ticks
_USUAL_RATE = 30
_RESTART_FRAMES = 2  # a clock that goes back further is a new one, by less it jitters
_NEIGHBOURS = 3  # packets; a container notices a seam up to so many of them early
# H.264 plays everywhere; a build of FFmpeg without its encoder has that of MPEG-4.
_ENCODERS = ("libx264", "mpeg4")


class VideoError(UserError):
    """A video that can not be opened, or a camera that is not there."""


@dataclass(frozen=True)
class VideoFrame:
    """One frame.

    Attributes:
        index: From 0.
        time_s: Since the start of the video, in seconds, never decreasing; by the frame rate where the frames carry no
            time. Where the clock of a joined or cut stream starts over, it continues one frame later.
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

    What can not be decoded is left out, and the frames resume behind it; :attr:`problem` says so afterwards.

    Args:
        container: As PyAV opened it.
        name: For messages.

    Attributes:
        name: For messages.
        frames: How many frames there are, as the file states or as its length suggests, which of a joined stream is
            that of one part; ``None`` where neither does.
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
        self._damaged: list[int] = []  # positions of packets
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
        return f"{rule} is damaged (packets left out: {len(self._damaged)})" if self._damaged else None

    def __iter__(self) -> Iterator[VideoFrame]:
        """The frames; where reading fails, as when a camera is unplugged, they end."""
        first: float | None = None
        part, shift, last = 0, 0.0, 0.0
        began = time.perf_counter()
        for index, (number, frame) in enumerate(self._decoded()):
            now = index / self.rate if frame.time is None else float(frame.time)
            if number != part:
                part, first, shift = number, None, last + 1 / self.rate
            first = now if first is None else first
            last = max(last, shift + now - first)
            yield VideoFrame(index, last, time.perf_counter() - began, frame)
            began = time.perf_counter()

    def _decoded(self) -> Iterator[tuple[int, Any]]:
        """Each frame, behind the number of the part that it is in: one for each time that the clock starts over."""
        errors = _av().error
        packets = self._container.demux(self._stream)
        part, last_dts = 0, None
        for position in count():
            try:
                packet = next(packets, None)
            except errors.FFmpegError as error:
                self._broke_off = _reason(error)
                return
            if packet is None:
                return
            if packet.dts is not None:
                back = 0 if last_dts is None else float((last_dts - packet.dts) * packet.time_base)
                last_dts = packet.dts
                if back > _RESTART_FRAMES / self.rate:
                    for frame in self._drained():
                        yield part, frame
                    part += 1
                    # where two recordings meet, a packet's number is not its predecessor's next: nothing is damaged
                    self._damaged = [one for one in self._damaged if one < position - _NEIGHBOURS]
            if packet.is_corrupt:
                self._damaged.append(position)
            try:
                frames = packet.decode()
            except errors.FFmpegError:
                if not packet.is_corrupt:
                    self._damaged.append(position)
                continue
            for frame in frames:
                yield part, frame

    def _drained(self) -> list[Any]:
        """What is still in the decoder; it begins anew, as the next part may have frames of another size."""
        context = self._stream.codec_context
        try:
            frames: list[Any] = context.decode(None)
        except _av().error.FFmpegError:
            frames = []
        for frame in frames:
            frame.time_base = self._stream.time_base
        context.flush_buffers()
        return frames

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
    return _open(f"file:{path}", str(path), None)


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

    The file appears when the writer is closed, whole; where it can not be written there is none.

    Args:
        path: The file; an older one is replaced.
        rate: Frames a second, on average: what the encoder plans with.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self._rate = Fraction(rate).limit_denominator(1001)
        self._unfinished = path.with_name(f".{secrets.token_hex(8)}.part")
        self._container: Any = None
        self._size = (0, 0)
        self._last_tick = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, image: Image.Image, time_s: float) -> None:
        """Add an image; one of another size than the first is fitted into that, on black.

        Raises:
            OSError: The file can not be written; what was written is gone.
        """
        av = _av()
        with self._written():
            if self._container is None:
                self._open(av, *image.size)
                self._size = image.size
            if image.size != self._size:
                image = ImageOps.pad(image, self._size)
            frame = av.VideoFrame.from_ndarray(_even(np.asarray(image)), format="rgb24")
            self._last_tick = max(self._last_tick + 1, round(time_s * _TICKS_PER_S))
            frame.pts, frame.time_base = self._last_tick, Fraction(1, _TICKS_PER_S)
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is still in the encoder and finish the file; nothing was written, no file.

        Raises:
            OSError: As :meth:`write`.
        """
        if self._container is None:
            return
        with self._written():
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._container = None
            if self.path.exists():
                self._unfinished.chmod(self.path.stat().st_mode & 0o7777)
            self._unfinished.replace(self.path)

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Leave nothing behind of a file that can not be written."""
        try:
            yield
        except (_av().error.FFmpegError, OSError) as error:
            container, self._container = self._container, None
            if container is not None:
                with suppress(_av().error.FFmpegError, OSError):
                    container.close()
            self._unfinished.unlink(missing_ok=True)
            raise OSError(f"{self.path} can not be written: {_reason(error)}") from None

    def _open(self, av: Any, width: int, height: int) -> None:
        encoder = next(name for name in _ENCODERS if name in av.codecs_available)
        file = f"file:{self._unfinished}"
        self._container = av.open(file, "w", format="mp4", options={"movflags": "faststart"})
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
        # a clock that starts over shall not be taken for one that has run over, 26.5 hours later
        container = av.open(file, format=kind, options={"correct_ts_overflow": "0"}, metadata_errors="replace")
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
