"""Detection over files: pictures, folders and patterns in; JSON and drawn copies out; one bad file stops nothing."""

import glob
import json
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from profiler.errors import UserError
from smnas.data.image import load_rgb
from smnas.data.letterbox import letterbox
from smnas.deploy.detector import Detection, named_detections
from smnas.deploy.draw import draw_detections
from smnas.deploy.runtime import Model

__all__ = ["PICTURE_SUFFIXES", "DetectReport", "PictureResult", "StageTimes", "detect_files", "find_pictures"]

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


@dataclass(frozen=True)
class PictureResult:
    """What was found on one picture.

    Attributes:
        path: The picture file.
        width: In pixels; 0 when it could not be read.
        height: In pixels; 0 when it could not be read.
        detections: Best first.
        drawn: The copy with boxes, if one was asked for.
        error: Why nothing could be found, one line; ``None`` when all went well.
    """

    path: Path
    width: int = 0
    height: int = 0
    detections: tuple[Detection, ...] = ()
    drawn: Path | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            **asdict(self),
            "path": str(self.path),
            "drawn": None if self.drawn is None else str(self.drawn),
            "detections": [asdict(detection) for detection in self.detections],
        }


@dataclass
class StageTimes:
    """Where the time went, in seconds over all pictures."""

    decode_s: float = 0.0
    preprocess_s: float = 0.0
    network_s: float = 0.0
    postprocess_s: float = 0.0
    draw_s: float = 0.0


@dataclass(frozen=True)
class DetectReport:
    """All pictures of one call.

    Attributes:
        pictures: In the order in which they were given.
        times: Where the time went.
    """

    pictures: tuple[PictureResult, ...]
    times: StageTimes = field(default_factory=StageTimes)

    @property
    def failed(self) -> tuple[PictureResult, ...]:
        """The pictures that could not be read."""
        return tuple(picture for picture in self.pictures if picture.error is not None)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"pictures": [picture.to_dict() for picture in self.pictures], "times": asdict(self.times)}

    def to_coco(self) -> list[dict[str, Any]]:
        """As COCO results, with ``file_name`` in place of the image id that a lone file does not have."""
        return [
            {
                "file_name": picture.path.name,
                "category_id": one.category_id,
                "bbox": [one.box[0], one.box[1], one.box[2] - one.box[0], one.box[3] - one.box[1]],
                "score": one.score,
            }
            for picture in self.pictures
            for one in picture.detections
        ]

    def write_json(self, path: Path) -> None:
        """Write :meth:`to_dict` as one JSON document."""
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def find_pictures(arguments: Iterable[str | Path]) -> list[Path]:
    """Files, folders (their pictures by suffix, not those of folders inside) and glob patterns, as files.

    A file that is named is taken whatever its suffix, and once even if it is named twice.

    Raises:
        UserError: Nothing is there under a name, a folder without pictures, a pattern without matches.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = [p for p in sorted(path.iterdir()) if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file()]
            if not inside:
                raise UserError(f"a folder of pictures must hold at least one, but {path} holds none")
            found.update(dict.fromkeys(inside))
        elif path.exists():
            found[path] = None
        else:
            expanded = glob.glob(str(argument), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            matches = [p for p in map(Path, sorted(expanded)) if p.is_file()]
            if not matches:
                raise UserError(f"a picture must be an existing file, folder or pattern, but got {argument}")
            found.update(dict.fromkeys(matches))
    return list(found)


def detect_files(
    model: Model,
    paths: Sequence[Path],
    *,
    score: float = 0.3,
    out_dir: Path | None = None,
    on_picture: Callable[[PictureResult, int, int], None] | None = None,
) -> DetectReport:
    """Find objects on picture files.

    Of an animation the first frame counts. A file that can not be read gives a result with its reason, and the others
    go on.

    Args:
        model: The detector.
        paths: Picture files.
        score: Lowest score of a detection that counts.
        out_dir: Where copies with drawn boxes are written, under their names (numbered where two are the same).
        on_picture: Told every result, how many are done and of how many.

    Raises:
        UserError: ``out_dir`` can not be made.
    """
    if out_dir is not None:
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the output must be a folder that can be made, but got {out_dir} ({error.strerror})"
            ) from None
    times = StageTimes()
    names = _distinct_names(paths)
    results = []
    for path, name in zip(paths, names, strict=True):
        try:
            result = _detect_file(model, path, score, None if out_dir is None else out_dir / name, times)
        except UserError as error:
            result = PictureResult(path, error=str(error))
        except (OSError, MemoryError) as error:
            result = PictureResult(path, error=f"{path} could not be handled: {error or type(error).__name__}")
        results.append(result)
        if on_picture is not None:
            on_picture(result, len(results), len(paths))
    return DetectReport(tuple(results), times)


def _detect_file(model: Model, path: Path, score: float, drawn: Path | None, times: StageTimes) -> PictureResult:
    marks = [time.perf_counter()]
    with warnings.catch_warnings():
        # Pillow warns from 89 million pixels on and refuses from 179 million on; between, the picture is fine.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        pixels = load_rgb(path)
    marks.append(time.perf_counter())
    canvas, scale = _canvas(pixels, *model.input_size)
    marks.append(time.perf_counter())
    arrays = model(canvas)
    marks.append(time.perf_counter())
    size = (pixels.shape[1], pixels.shape[0])
    detections = tuple(named_detections(model, arrays, 0, scale, size, score))
    marks.append(time.perf_counter())
    if drawn is not None:
        draw_detections(pixels, detections).save(drawn, quality=92)
    marks.append(time.perf_counter())
    seconds = np.diff(marks).tolist()
    times.decode_s += seconds[0]
    times.preprocess_s += seconds[1]
    times.network_s += seconds[2]
    times.postprocess_s += seconds[3]
    times.draw_s += seconds[4]
    return PictureResult(path, *size, detections, drawn)


def _canvas(pixels: NDArray[np.uint8], width: int, height: int) -> tuple[NDArray[np.uint8], float]:
    canvas, scale = letterbox(pixels, width, height)
    return np.ascontiguousarray(canvas.transpose(2, 0, 1))[None], scale


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """A file name for every drawn copy: JPEG for JPEG, else PNG; two pictures of one name are numbered."""
    taken: set[str] = set()
    names = []
    for path in paths:
        suffix = ".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
        name, number = path.stem + suffix, 1
        while name in taken:
            number += 1
            name = f"{path.stem}-{number}{suffix}"
        taken.add(name)
        names.append(name)
    return names
