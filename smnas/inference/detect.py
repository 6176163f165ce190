"""Detection over files: images, videos and a camera in, results and drawn copies out; a bad file stops nothing."""

import io
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from PIL import Image

from profiler.atomic import require_room
from profiler.errors import UserError
from smnas.data.image import Decoded, decode
from smnas.inference.draw import draw_detections, legend
from smnas.inference.inputs import Inputs
from smnas.inference.pipeline import DetectOptions, Found, StageTimes, find_objects, map_ahead, read_ahead
from smnas.inference.results import DetectReport, FrameResult, ImageResult, VideoResult
from smnas.inference.runtime import Model
from smnas.inference.video import VideoFrame, VideoReader, VideoWriter, open_camera, open_video

__all__ = ["detect_inputs"]

_JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})

OnImage = Callable[[ImageResult, int, int], None]
OnFrame = Callable[[FrameResult, str, int | None], None]


def detect_inputs(
    model: Model,
    inputs: Inputs,
    options: DetectOptions | None = None,
    *,
    out_dir: Path | None = None,
    sizes: Mapping[Path, tuple[int, int]] | None = None,
    max_frames: int | None = None,
    keep_frames: bool = True,
    on_image: OnImage | None = None,
    on_frame: OnFrame | None = None,
) -> DetectReport:
    """Detect objects in all images, then in one video after the other, then on the camera.

    An animation counts with its first frame. An unreadable file gives a result with the reason. After a keyboard
    interrupt the report holds everything finished, and a drawn video ends there.

    Args:
        model: The detector.
        inputs: Images, videos and camera.
        options: Score, batch and threads.
        out_dir: Folder for drawn copies, under their images' names (numbered if ambiguous).
        sizes: Annotated width and height of images; an image of another size is an error.
        max_frames: Limit per video or camera.
        keep_frames: Keep every frame's detections of videos; otherwise memory does not grow with length.
        on_image: Gets every image's result, and the numbers of finished and of all images.
        on_frame: Gets every frame's result, its video, and the number of frames if known.

    Raises:
        UserError: ``out_dir`` can not be created, or drawn copies would replace their source files.
    """
    run = _Run(model, options or DetectOptions(), _drawn_files(inputs, out_dir))
    images: list[ImageResult] = []
    videos: list[VideoResult] = []
    interrupted = False
    began = time.perf_counter()
    try:
        with closing(run.images(inputs.images, sizes or {})) as results:
            for image in results:
                images.append(image)
                if on_image is not None:
                    on_image(image, len(images), len(inputs.images))
        for source in (*inputs.videos, *(() if inputs.camera is None else (inputs.camera,))):
            video, interrupted = run.video(source, max_frames, keep_frames, on_frame)
            videos.append(video)
            if interrupted:
                break
    except KeyboardInterrupt:
        interrupted = True
    run.times.wall_s = time.perf_counter() - began
    numbers = legend(model.classes, model.category_ids) if run.drawn else None
    return DetectReport(tuple(images), tuple(videos), run.times, interrupted, numbers)


@dataclass(frozen=True)
class _Run:
    model: Model
    options: DetectOptions
    drawn: Mapping[Path | int, Path]
    times: StageTimes = field(default_factory=StageTimes)

    def images(
        self, paths: Sequence[Path], sizes: Mapping[Path, tuple[int, int]]
    ) -> Generator[ImageResult, None, None]:
        """Detections on every image, those of a bad one with its error."""
        workers = self.options.workers
        remarks: dict[Path, str] = {}
        canvas = self.model.input_size if self.options.quick_decode and not self.drawn else None

        def read(path: Path) -> Decoded:
            decoded = decode(path, sizes.get(path), canvas=canvas)
            if decoded.frames > 1:
                remarks[path] = f"{path} holds {decoded.frames} images, of which the first counts"
            return decoded

        def finish(found: Found[Path]) -> tuple[ImageResult, float]:
            path = found.source
            if found.error is not None:
                return ImageResult(path, error=_reason(path, found.error)), 0.0
            result = ImageResult(path, *found.size, found.detections, remark=remarks.pop(path, None))
            if found.image is None:
                return result, 0.0
            began = time.perf_counter()
            try:
                _save(draw_detections(found.image, found.detections), self.drawn[path])
                result = replace(result, drawn=self.drawn[path])
            except (OSError, MemoryError) as error:
                result = replace(result, error=_reason(path, error))
            return result, time.perf_counter() - began

        with warnings.catch_warnings():
            # Pillow warns from 89 million pixels and refuses from 179 million; in between, the image is fine.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            run = find_objects(self.model, paths, read, self.options, self.times, keep_images=bool(self.drawn))
            with closing(run) as found:
                for result, seconds in map_ahead(finish, found, workers if self.drawn else 0, workers):
                    self.times.draw_s += seconds
                    yield result

    def video(
        self, source: Path | int, max_frames: int | None, keep_frames: bool, on_frame: OnFrame | None
    ) -> tuple[VideoResult, bool]:
        """Return a video's result, and whether it was interrupted from the keyboard."""
        name = f"camera {source}" if isinstance(source, int) else str(source)
        result = VideoResult(name)
        drawn = self.drawn.get(source)
        kept: list[FrameResult] = []
        interrupted = False
        try:
            with open_camera(source) if isinstance(source, int) else open_video(source) as reader:
                result = replace(result, frames_per_s=reader.rate)
                total = _smaller(reader.frames, max_frames)
                with closing(self._frames(reader, drawn, max_frames)) as frames:
                    for frame in frames:
                        if not result.count:
                            result = replace(result, width=frame.width, height=frame.height, drawn=drawn)
                        elif result.remark is None and (frame.width, frame.height) != (result.width, result.height):
                            sizes = f"{frame.width}x{frame.height} pixels, before of {result.width}x{result.height}"
                            result = replace(result, remark=f"from frame {frame.frame} on {name} has frames of {sizes}")
                        result.found.update(one.name for one in frame.detections)
                        result = replace(result, count=result.count + 1)
                        if keep_frames:
                            kept.append(frame)
                        if total is not None and result.count > total:
                            total = max_frames  # the header's number was an estimate, or that of the first part
                        if on_frame is not None:
                            on_frame(frame, name, total)
                result = replace(result, error=reader.problem)
            if result.count == 0 and result.error is None:
                result = replace(result, error=f"a video must hold images, but {name} has not one frame")
        except KeyboardInterrupt:
            interrupted = True
        except (UserError, OSError, MemoryError) as error:
            gone = isinstance(error, OSError)  # the drawn copy could not be written
            result = replace(result, error=_reason(name, error), drawn=None if gone else result.drawn)
        return replace(result, frames=tuple(kept)), interrupted

    def _frames(
        self, reader: VideoReader, drawn: Path | None, max_frames: int | None
    ) -> Generator[FrameResult, None, None]:
        """Yield every frame's detections; a drawn file is complete when this ends, however it ends."""
        batch = self.options.batch_for(self.model)
        with ExitStack() as stack:
            # Closed in order, last stage first, so that no thread works on a file that is being closed.
            frames: Iterable[VideoFrame] = islice(reader, max_frames)
            if self.options.workers:
                frames = stack.enter_context(closing(read_ahead(frames, batch)))
            writer = None if drawn is None else stack.enter_context(VideoWriter(drawn, reader.rate))
            keep = writer is not None

            def finish(found: Found[VideoFrame]) -> tuple[Found[VideoFrame], float]:
                if writer is None or found.image is None:
                    return found, 0.0
                began = time.perf_counter()
                writer.write(draw_detections(found.image, found.detections), found.source.time_s)
                return found, time.perf_counter() - began

            run = find_objects(self.model, frames, VideoFrame.decoded, self.options, self.times, keep_images=keep)
            found = stack.enter_context(closing(run))
            # One drawing thread: the frames of a file have an order.
            threads = min(1, self.options.workers) if writer is not None else 0
            for one, seconds in stack.enter_context(closing(map_ahead(finish, found, threads, batch))):
                if one.error is not None:
                    raise one.error
                self.times.decode_s += one.source.read_s
                self.times.draw_s += seconds
                yield FrameResult(one.source.index, one.source.time_s, one.detections, *one.size)


def _save(image: Image.Image, path: Path) -> None:
    # Via memory: on a full disk Pillow's own writing of a JPEG file leaves a truncated file without an error.
    content = io.BytesIO()
    image.save(content, format="JPEG" if path.suffix == ".jpg" else "PNG", quality=92)
    try:
        path.write_bytes(content.getbuffer())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _smaller(stated: int | None, limit: int | None) -> int | None:
    known = [count for count in (stated, limit) if count is not None]
    return min(known) if known else None


def _reason(name: Path | str, error: Exception) -> str:
    """Return a user's error as it is, any other with its file."""
    if isinstance(error, UserError):
        return str(error)
    return f"{name} could not be handled: {str(error) or type(error).__name__}"


def _drawn_files(inputs: Inputs, out_dir: Path | None) -> dict[Path | int, Path]:
    """Return a file for each drawn copy: JPEG for JPEG, MP4 for videos, else PNG; numbered if ambiguous."""
    if out_dir is None:
        return {}
    require_room(out_dir, "drawn copies")
    wanted: list[tuple[Path | int, str, str]] = [
        (path, path.stem, ".jpg" if path.suffix.lower() in _JPEG_SUFFIXES else ".png") for path in inputs.images
    ]
    wanted += [(path, path.stem, ".mp4") for path in inputs.videos]
    if inputs.camera is not None:
        wanted.append((inputs.camera, f"camera-{inputs.camera}", ".mp4"))
    originals = {path.resolve() for path in (*inputs.images, *inputs.videos)}
    drawn: dict[Path | int, Path] = {}
    taken: set[str] = set()
    for source, stem, suffix in wanted:
        name, number = stem + suffix, 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}{suffix}"
        taken.add(name)
        if (out_dir / name).resolve() in originals:
            raise UserError(f"drawn copies must not replace the originals, but {out_dir / name} is one of them")
        drawn[source] = out_dir / name
    return drawn
