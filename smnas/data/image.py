"""Picture files to ``uint8`` RGB arrays, whatever their mode."""

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from smnas.data.errors import DataError

__all__ = ["Decoded", "decode", "load_rgb", "upright_rgb"]

# What Pillow's decoders raise on damaged files, beside OSError (which covers UnidentifiedImageError and truncation).
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# Orientations 5 to 8 swap width and height.
_FIRST_SWAPPING_ORIENTATION = 5
# The further pictures in a camera's MPO file are previews and other views of the first.
_ONE_PICTURE_FORMATS = frozenset({"MPO"})


class Decoded(NamedTuple):
    """A picture file's content.

    Attributes:
        picture: RGB, the right way up.
        frames: how many pictures the file holds: more than 1 for an animation or several pages, of which this is the
            first.
    """

    picture: Image.Image
    frames: int


def load_rgb(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decode a picture.

    Grayscale, palette, CMYK and other colour modes become RGB; 16-bit pictures are scaled to 8 bits; an alpha channel
    is dropped. The EXIF orientation is applied, as every viewer does, unless ``size`` says that the boxes were drawn on
    the stored pixels.

    Args:
        path: the picture file.
        size: the width and height in pixels that the annotations state, where there are annotations.

    Returns:
        ``(H, W, 3)`` ``uint8``, RGB, contiguous.

    Raises:
        DataError: the file is missing, can not be decoded, or is not of the stated size.
    """
    return np.array(decode(path, size).picture, dtype=np.uint8)


def decode(path: Path, size: tuple[int, int] | None = None) -> Decoded:
    """What :func:`load_rgb` does, without the array; of an animation the first frame.

    Raises:
        DataError: the file is missing, can not be decoded, or is not of the stated size.
    """
    try:
        with Image.open(path) as picture:
            frames = 1 if picture.format in _ONE_PICTURE_FORMATS else getattr(picture, "n_frames", 1)
            picture.load()
            rgb = upright_rgb(picture, str(path), size)
    except FileNotFoundError:
        raise DataError(f"a picture must exist, but there is no file {path}") from None
    except _DECODE_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"a picture must be decodable, but {path} is not: {reason}") from None
    if size is not None and rgb.size != size:
        raise DataError(
            f"a picture must have the size that its annotations state, but {path} is {rgb.width}x{rgb.height}"
            f" and the annotations say {size[0]}x{size[1]}"
        )
    return Decoded(rgb, frames)


def upright_rgb(picture: Image.Image, name: str, size: tuple[int, int] | None = None) -> Image.Image:
    """A picture in any colour mode as 8-bit RGB, turned as its EXIF orientation says.

    Args:
        picture: as Pillow opened it.
        name: for the message.
        size: the width and height in pixels that the annotations state, where there are annotations.

    Raises:
        DataError: the picture holds floating-point numbers.
    """
    return _to_rgb(_upright(picture, size), name)


def _upright(picture: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation == 1:
        return picture
    swaps = orientation >= _FIRST_SWAPPING_ORIENTATION
    turned = (picture.height, picture.width) if swaps else picture.size
    if size is not None and turned != size and picture.size == size:
        return picture
    return ImageOps.exif_transpose(picture)


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode == "F":
        raise DataError(f"a picture must have 8 or 16 bits a channel, but {name} holds floating-point numbers")
    if picture.mode.startswith("I"):
        # Pillow clips 16-bit values at 255 instead of scaling them.
        deep = np.asarray(picture).astype(np.int64).clip(0, 65535)
        return Image.fromarray((deep // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in ("P", "PA"):
        # Straight to RGB warns where the palette has transparency.
        return picture.convert("RGBA").convert("RGB")
    return picture.convert("RGB")
