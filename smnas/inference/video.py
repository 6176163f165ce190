"""Read video files and cameras as frames, and write frames as a video file, through PyAV."""

import importlib
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

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

# FFmpeg's containers, then its raw image streams
_SUFFIXES = """
.3g2 .3gp .3gp2 .3gpp .amv .asf .avi .dav .dif .divx .dv .dvr-ms .f4v .flv .gxf .insv .ismv .lrv .m1v .m2p .m2t .m2ts
.m2v .m4v .mj2 .mk3d .mkv .mod .mov .mp4 .mp4v .mpe .mpeg .mpg .mpv .mts .mxf .nsv .nut .ogm .ogv .ogx .psp .qt .rm
.rmvb .rv .tod .tp .trp .ts .vob .vro .webm .wm .wmv .wtv .xvid
.264 .265 .266 .av1 .avc .cavs .drc .h261 .h263 .h264 .h265 .h266 .h26l .hevc .ivf .mjpeg .mjpg .obu .vc1 .vvc .y4m
"""
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())
_TICKS_PER_S = 90_000  # MPEG's clock: every usual frame rate is a whole number of ticks
_USUAL_RATE = 30
_RESTART_FRAMES = 2  # a clock that goes back further has restarted; by less it jitters
_NEIGHBOURS = 3  # packets; a container notices a seam up to this much too early
_STATE_LENGTH = ("matroska", "flv")  # containers without a number of frames
_WHOLE, _ROUNDED = 0.9, 1  # a whole file has at least this fraction of its stated frames, less one
_LARGEST_PLACEHOLDER = 7  # bytes of a packet of MPEG-4 that says that nothing changed
_VP8_SHOWN = 1 << 4  # of a packet's first byte
# H.264 plays everywhere; FFmpeg builds without its encoder have MPEG-4's.
_ENCODERS = ("libx264", "mpeg4")


class VideoError(UserError):
    """A video that can not be opened, or a missing camera."""


@dataclass(frozen=True)
class VideoFrame:
    """One frame.

    Attributes:
        time_s: Since the start of the video, in seconds, never decreasing; from the frame rate if frames carry no time.
            Where the clock of a joined or cut stream restarts, it continues one frame later.
        read_s: Time for reading and decoding.
    """

    index: int
    time_s: float
    read_s: float
    content: Any

    def decoded(self) -> Decoded:
        """Return the frame in RGB, rotated as the video states, as phones write it."""
        upright: Image.Image = self.content.to_image()
        turns = round(self.content.rotation / 90) % 4
        if turns:
            upright = Image.fromarray(np.ascontiguousarray(np.rot90(np.asarray(upright), turns)))
        return Decoded(upright)


class VideoReader(AbstractContextManager["VideoReader"]):
    """The frames of an open video or camera, once, in order.

    Undecodable frames are left out; :attr:`problem` reports them afterwards.

    Attributes:
        frames: Number of frames, as stated by the file or estimated from its length, which for a joined stream is that
            of one part; ``None`` without either.
        rate: Frames per second, on average.

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
        length = container.duration  # in microseconds
        estimate = round(length / 1e6 * self.rate) if length and length > 0 else None
        self.frames = int(self._stream.frames) or estimate
        # an edited file states its hidden frames as well
        self._stated = min(self._stream.frames, estimate or self._stream.frames)
        states = container.format.name.startswith(_STATE_LENGTH) and len(container.streams) == 1
        self._length_s = length / 1e6 if states and length else 0.0
        self._damaged: list[int] = []  # packet positions
        self._broke_off: str | None = None
        self._packets = 0
        self._end_s = 0.0
        self._lost = 0
        self._ended = False

    def __exit__(self, *_: object) -> None:
        self._container.close()

    @property
    def problem(self) -> str | None:
        """One line about problems of the part read so far; ``None`` without any."""
        missing = max(self._stated - self._packets, round((self._length_s - self._end_s) * self.rate))
        lost = self._lost + missing * (self._ended and missing > _ROUNDED + (1 - _WHOLE) * self._packets)
        found = [] if self._broke_off is None else [self._broke_off]
        found += [f"packets left out: {len(self._damaged)}"] * bool(self._damaged)
        found += [f"frames lost: {lost}"] * bool(lost)
        how = "is damaged" if self._broke_off is None else "breaks off"
        return f"a video must be whole, but {self.name} {how} ({', '.join(found)})" if found else None

    def __iter__(self) -> Iterator[VideoFrame]:
        """Iterate over the frames; they end where reading fails, as when a camera is unplugged."""
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
        """Yield each frame after the number of its part; a new part begins whenever the clock restarts."""
        errors = _av().error
        packets = self._container.demux(self._stream)
        part, last_dts, shown = 0, None, _Shown()
        for position in count():
            try:
                packet = next(packets, None)
            except errors.FFmpegError as error:
                self._broke_off, packet = _reason(error), None
            if packet is None:
                for frame in [] if self._broke_off is None else self._drained():
                    yield part, shown.frame(frame)
                self._ended = True
                self._lost += shown.lost
                return
            if packet.dts is not None:
                back = 0 if last_dts is None else float((last_dts - packet.dts) * packet.time_base)
                last_dts = packet.dts
                if back > _RESTART_FRAMES / self.rate:
                    for frame in self._drained():
                        yield part, shown.frame(frame)
                    self._lost += shown.lost
                    part, shown = part + 1, _Shown()
                    # where two recordings meet, packet numbers are not consecutive: nothing is damaged
                    self._damaged = [one for one in self._damaged if one < position - _NEIGHBOURS]
            if packet.is_corrupt:
                self._damaged.append(position)
            self._packets += packet.size > 0 or packet.dts is not None  # a recorder's dropped frame is an empty packet
            if packet.pts is not None:
                self._end_s = max(self._end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            shown.packet(packet)
            try:
                frames = packet.decode()
            except errors.FFmpegError:
                if not packet.is_corrupt:
                    self._damaged.append(position)
                continue
            for frame in frames:
                yield part, shown.frame(frame)

    def _drained(self) -> list[Any]:
        """Drain and reset the decoder, as the next part may have frames of another size."""
        context = self._stream.codec_context
        if context is None:
            return []
        try:
            frames: list[Any] = context.decode(None)
        except _av().error.FFmpegError:
            frames = []
        for frame in frames:
            frame.time_base = self._stream.time_base
        context.flush_buffers()
        return frames


class _Shown:
    """Counts the packets of a part whose frames a decoder drops without an error.

    Those before the first key frame do not count: a cut recording may begin with frames that need earlier ones.
    """

    def __init__(self) -> None:
        self._waiting: set[int | None] = set()
        self._packets = self._frames = 0
        self._first: int | None = None
        self._fields = False

    def packet(self, packet: Any) -> None:
        """Count a packet that holds a frame to be shown."""
        codec = getattr(packet.stream.codec_context, "name", "unknown")
        hidden = codec == "vp8" and packet.size and not memoryview(packet)[0] & _VP8_SHOWN
        if self._first is None and packet.is_keyframe:
            self._first = packet.pts
        if self._first is not None and packet.size > _LARGEST_PLACEHOLDER and not packet.is_discard and not hidden:
            self._packets += 1
            self._waiting.add(packet.pts)

    def frame(self, frame: Any) -> Any:
        """Count a frame and return it."""
        self._frames += 1
        self._fields |= frame.interlaced_frame  # each of two packets may hold a half
        self._waiting.discard(frame.pts)
        return frame

    @property
    def lost(self) -> int:
        """Number of frames lost, once the decoder has no more."""
        if self._first is None or self._fields:
            return 0
        late = sum(pts is not None and pts >= self._first for pts in self._waiting)
        return max(0, min(late, self._packets - self._frames))


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
        VideoError: The camera is missing or in use, or this system does not number cameras.
        BackendUnavailableError: PyAV is not installed.
    """
    file, kind = _camera(index)
    return _open(file, f"camera {index}", kind)


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """Writes RGB images as an ``.mp4`` file without sound, each shown from its time on.

    The file appears, complete, when the writer is closed, or not at all on failure. ``rate`` is the average number of
    frames per second, for the encoder; an older file is replaced.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self._rate = Fraction(rate).limit_denominator(1001)
        self._unfinished = path.with_name(f".{secrets.token_hex(8)}.part")
        self._container: Any = None
        self._size = (0, 0)
        self._last_tick = -1

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, image: Image.Image, time_s: float) -> None:
        """Add an image, fitted on black into the size of the first if it differs.

        Raises:
            OSError: The file can not be written; the partial file is removed.
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
        """Flush the encoder and finish the file; without images there is none.

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
        """Remove a file that can not be written."""
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
    """Return the version of PyAV.

    Raises:
        BackendUnavailableError: It is not installed.
    """
    return str(_av().__version__)


def _even(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Repeat the last column and row where their number is odd: colours are stored for two by two pixels."""
    height, width = pixels.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return pixels
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _camera(index: int) -> tuple[str, str]:
    """Return the name and format under which FFmpeg opens a camera."""
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
        # a restarting clock must not be taken for one that overflowed after 26.5 hours
        container = av.open(file, format=kind, options={"correct_ts_overflow": "0"}, metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"a video must be readable, but {name} is not: {_reason(error)}") from None
    return VideoReader(container, name)


def _reason(error: BaseException) -> str:
    """Return FFmpeg's message without error number and file name."""
    return str(getattr(error, "strerror", None) or error)


def _av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError:
        raise BackendUnavailableError(
            "reading and writing video needs PyAV, which is not installed: pip install 'smnas[video]'"
        ) from None
