"""Image files to ``uint8`` RGB arrays, whatever their mode."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from profiler.errors import one_line
from smnas.data.errors import DataError
from smnas.data.letterbox import fit_scale

__all__ = ["CONVERT_HEIC", "HEIC_SUFFIXES", "Decoded", "decode", "load_rgb", "stored_size", "upright_rgb"]

HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
CONVERT_HEIC = "HEIC needs to be converted first, as by `magick photo.heic photo.jpg` or `heif-convert`"
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_LARGE_IMAGES = "SMNAS_LARGE_IMAGES"
"""Environment variable: ``1`` allows images beyond Pillow's limit against decompression bombs."""

# Errors of Pillow's decoders on damaged files, beside OSError (which covers UnidentifiedImageError and truncation).
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    RuntimeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    struct.error,
    zlib.error,
)
# Orientations 5 to 8 swap width and height.
_FIRST_SWAPPING_ORIENTATION = 5
# Further images in a camera's MPO file are previews and other views of the first.
_ONE_IMAGE_FORMATS = frozenset({"MPO"})

_LARGEST_OF_12_BITS = 4095
_REDUCIBLE_FORMATS = frozenset({"JPEG", "MPO"})
# Pixels per side of a reduced image for each pixel of the canvas.
_MARGIN = 4


class Decoded(NamedTuple):
    """A decoded image.

    Attributes:
        image: upright RGB.
        frames: number of images in the file; ``image`` is the first of an animation or of several pages.
        reduction: pixels per side of the file for each of ``image``; more than 1 only if requested.
    """

    image: Image.Image
    frames: int = 1
    reduction: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the full image in pixels."""
        return self.image.width * self.reduction, self.image.height * self.reduction


def load_rgb(
    path: Path, size: tuple[int, int] | None = None, *, stored: Callable[[], bool] | None = None
) -> NDArray[np.uint8]:
    """Decode an image.

    Grayscale, palette, CMYK and other colour modes become RGB; 16-bit images are scaled to 8 bits, from 12 bits if all
    values fit, as many cameras write them; an alpha channel is dropped. The EXIF orientation is applied, as in every
    viewer, unless ``size`` shows that the boxes were drawn on the stored pixels.

    Args:
        path: the image file.
        size: annotated width and height in pixels, if any.
        stored: decides whether boxes were drawn on the stored pixels where ``size`` does not, as for square images.

    Returns:
        ``(H, W, 3)`` ``uint8``, RGB, contiguous.

    Raises:
        DataError: the file is missing, can not be decoded, or is not of the stated size.
    """
    return np.array(decode(path, size, stored=stored).image, dtype=np.uint8)


def stored_size(path: Path) -> tuple[int, int] | None:
    """Return the stored width and height, if the EXIF orientation swaps two different sides; else ``None``."""
    try:
        with Image.open(path) as image:
            swaps = _orientation(image) >= _FIRST_SWAPPING_ORIENTATION and image.width != image.height
            return image.size if swaps else None
    except _DECODE_ERRORS:
        return None


def decode(
    path: Path,
    size: tuple[int, int] | None = None,
    *,
    canvas: tuple[int, int] | None = None,
    stored: Callable[[], bool] | None = None,
) -> Decoded:
    """Decode as :func:`load_rgb`, without the array; of an animation the first frame.

    Args:
        path: the image file.
        size: annotated width and height in pixels, if any.
        canvas: width and height to fit the image into. A JPEG file may then be decoded at a half, a quarter or an
            eighth of its size, several times as fast: where the sides divide evenly and the result keeps four times
            the canvas' pixels per side. Resized, it differs from the full image by little more than a copy saved at
            quality 92.
        stored: as for :func:`load_rgb`.

    Raises:
        DataError: the file is missing, can not be decoded, or is not of the stated size.
    """
    if os.environ.get(_LARGE_IMAGES) == "1":
        Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(path) as image:
            frames = 1 if image.format in _ONE_IMAGE_FORMATS else getattr(image, "n_frames", 1)
            reduction = 1 if canvas is None else _reduce(image, canvas)
            stated = size if size is None else (size[0] // reduction, size[1] // reduction)
            image.load()
            decoded = Decoded(upright_rgb(image, str(path), stated, stored), frames, reduction)
    except FileNotFoundError:
        raise DataError(f"an image must exist, but there is no file {path}") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise DataError(
            f"an image must have at most {limit:,} pixels, but {path} has more; {_LARGE_IMAGES}=1 decodes it"
        ) from None
    except _DECODE_ERRORS as error:
        reason = CONVERT_HEIC if _is_heic(path) else one_line(error)
        raise DataError(f"an image must be decodable, but {path} is not: {reason}") from None
    if size is not None and decoded.size != size:
        raise DataError(
            f"an image must have the size that its annotations state, but {path} is "
            f"{decoded.size[0]}x{decoded.size[1]} and the annotations say {size[0]}x{size[1]}"
        )
    return decoded


def upright_rgb(
    image: Image.Image,
    name: str,
    size: tuple[int, int] | None = None,
    stored: Callable[[], bool] | None = None,
) -> Image.Image:
    """Convert a Pillow image of any colour mode to upright 8-bit RGB; ``size`` and ``stored`` as in :func:`load_rgb`.

    Raises:
        DataError: the image holds floating-point numbers.
    """
    return _to_rgb(_upright(image, size, stored), name)


def _reduce(image: Image.Image, canvas: tuple[int, int]) -> int:
    """Decode a JPEG file at reduced size, see :func:`decode`, and return the factor."""
    if image.format not in _REDUCIBLE_FORMATS:
        return 1
    turned = _orientation(image) >= _FIRST_SWAPPING_ORIENTATION
    scale = fit_scale(*(image.size[::-1] if turned else image.size), *canvas)
    for factor in (8, 4, 2):
        if factor * _MARGIN * scale <= 1 and image.width % factor == image.height % factor == 0:
            image.draft(None, (image.width // factor, image.height // factor))
            return factor
    return 1


def _orientation(image: Image.Image) -> int:
    """Return 1 to 8; viewers ignore an orientation that is not a number."""
    stated = image.getexif().get(ExifTags.Base.Orientation, 1)
    return stated if isinstance(stated, int) else 1


def _upright(image: Image.Image, size: tuple[int, int] | None, stored: Callable[[], bool] | None) -> Image.Image:
    orientation = _orientation(image)
    if orientation == 1:
        return image
    swaps = orientation >= _FIRST_SWAPPING_ORIENTATION
    turned = (image.height, image.width) if swaps else image.size
    if size is not None and image.size == size and (turned != size or (stored is not None and stored())):
        return image
    return ImageOps.exif_transpose(image)


def _is_heic(path: Path) -> bool:
    """Check the first bytes, as phones' images may be named ``.jpg``."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return start[4:8] == b"ftyp" and start[8:] in _HEIC_BRANDS


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise DataError(f"an image must have 8 or 16 bits a channel, but {name} holds floating-point numbers")
    if image.mode.startswith("I"):
        # Pillow clips 16-bit values at 255 instead of scaling them.
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        largest = _LARGEST_OF_12_BITS if deep.max(initial=0) <= _LARGEST_OF_12_BITS else 65535
        return Image.fromarray((deep * 255 // largest).astype(np.uint8)).convert("RGB")
    if image.mode in ("P", "PA"):
        # Converting directly to RGB warns where the palette has transparency.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
