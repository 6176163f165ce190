"""Any image file becomes 8-bit RGB, the right way up, or an error that names it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from smnas.data.errors import DataError
from smnas.data.image import decode, load_rgb
from smnas.data.letterbox import letterbox


def gradient(width: int = 12, height: int = 8) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 20, y * 30, (x + y) * 10], axis=2).astype(np.uint8)


def test_rgb_is_returned_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "p.png")
    loaded = load_rgb(tmp_path / "p.png", (12, 8))
    np.testing.assert_array_equal(loaded, gradient())
    assert loaded.flags.c_contiguous
    assert loaded.flags.writeable


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_other_modes_become_what_pillow_shows(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(gradient()).convert(mode)
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(load_rgb(tmp_path / "p.png"), np.array(image.convert("RGB")))


def test_cmyk_is_close_to_the_rgb_that_it_came_from(tmp_path: Path) -> None:
    Image.fromarray(gradient(64, 64) // 2).convert("CMYK").save(tmp_path / "p.jpg", quality=98, subsampling=0)
    difference = load_rgb(tmp_path / "p.jpg").astype(int) - gradient(64, 64) // 2
    assert np.abs(difference).mean() < 6


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 96).reshape(8, 12).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "p.png")
    loaded = load_rgb(tmp_path / "p.png")
    assert loaded.shape == (8, 12, 3)
    np.testing.assert_allclose(loaded[:, :, 0], deep / 257, atol=1)


@pytest.mark.parametrize(("largest", "shown"), [(4095, 255), (4000, 249), (2048, 127), (4096, 15), (65535, 255)])
def test_twelve_bits_in_sixteen_are_scaled_from_there(tmp_path: Path, largest: int, shown: int) -> None:
    deep = np.linspace(0, largest, 96).reshape(8, 12).astype(np.uint16)
    for suffix in ("png", "tiff"):
        Image.fromarray(deep).save(tmp_path / f"p.{suffix}")
        loaded = load_rgb(tmp_path / f"p.{suffix}")
        assert (loaded.min(), loaded.max()) == (0, shown)


@pytest.mark.parametrize("name", ["photo.heic", "photo.jpg"])
@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_says_how_to_convert_it(tmp_path: Path, name: str, brand: bytes) -> None:
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(100))
    with pytest.raises(DataError, match=f"{name}.*magick photo.heic photo.jpg"):
        load_rgb(tmp_path / name)


def test_an_image_beyond_pillows_limit_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "p.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match=r"at most 1,000 pixels.*p\.png.*SMNAS_LARGE_IMAGES=1"):
        load_rgb(tmp_path / "p.png")
    monkeypatch.setenv("SMNAS_LARGE_IMAGES", "1")
    assert load_rgb(tmp_path / "p.png").shape == (30, 40, 3)


def test_a_palette_with_transparency_gives_no_warning(tmp_path: Path) -> None:
    Image.fromarray(gradient()).convert("P").save(tmp_path / "p.png", transparency=bytes(range(0, 250)))
    assert load_rgb(tmp_path / "p.png").shape == (8, 12, 3)


def save_turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(gradient()).save(path, exif=exif)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [(3, gradient()[::-1, ::-1]), (6, np.rot90(gradient(), -1)), (8, np.rot90(gradient(), 1))],
)
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int, expected: np.ndarray) -> None:
    save_turned(tmp_path / "p.png", orientation)
    height, width = expected.shape[:2]
    np.testing.assert_array_equal(load_rgb(tmp_path / "p.png"), expected)
    np.testing.assert_array_equal(load_rgb(tmp_path / "p.png", (width, height)), expected)


def test_annotations_made_on_the_stored_pixels_win_over_exif(tmp_path: Path) -> None:
    save_turned(tmp_path / "p.png", 6)
    np.testing.assert_array_equal(load_rgb(tmp_path / "p.png", (12, 8)), gradient())


def test_another_size_than_annotated_is_refused(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "p.png")
    with pytest.raises(DataError, match=r"p\.png is 12x8 and the annotations say 13x8"):
        load_rgb(tmp_path / "p.png", (13, 8))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"p.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"p.{suffix}") as caught:
        load_rgb(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jpg").write_text("not an image")
    with pytest.raises(DataError, match="decodable"):
        load_rgb(tmp_path / "p.jpg")
    with pytest.raises(DataError, match="must exist"):
        load_rgb(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match="decodable"):
        load_rgb(tmp_path)
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "p.tiff")
    with pytest.raises(DataError, match="floating-point"):
        load_rgb(tmp_path / "p.tiff")


def photograph(width: int, height: int) -> np.ndarray:
    """Structure of every size, as in a photograph: noise of 1/f."""
    rng = np.random.default_rng(0)
    total = np.zeros((height, width, 3))
    for side in (4, 8, 16, 32, 64, 128, 256):
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        total += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / 7.0
    return total.astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "canvas", "orientation", "expected"),
    [
        ((640, 512), (64, 64), 1, 2),
        ((640, 512), (80, 64), 1, 2),
        ((640, 512), (96, 96), 1, 1),  # a half would be less than four times the canvas
        ((1280, 1024), (40, 40), 1, 8),
        ((1280, 1024), (60, 80), 6, 4),
        ((1282, 1024), (40, 40), 1, 2),  # sides that do not divide by 4 and 8
        ((1281, 1024), (40, 40), 1, 1),
    ],
)
def test_a_large_jpeg_may_be_decoded_smaller(
    tmp_path: Path, size: tuple[int, int], canvas: tuple[int, int], orientation: int, expected: int
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(photograph(*size)).save(tmp_path / "p.jpg", quality=92, exif=exif)
    whole, reduced = decode(tmp_path / "p.jpg"), decode(tmp_path / "p.jpg", canvas=canvas)
    assert whole.reduction == 1
    assert reduced.reduction == expected
    assert reduced.size == whole.size == (size if orientation == 1 else size[::-1])
    assert reduced.image.width * expected == whole.image.width
    first, scale = letterbox(whole.image, *canvas)
    second, larger_scale = letterbox(reduced.image, *canvas)
    assert larger_scale / expected == pytest.approx(scale)
    difference = np.abs(first.astype(int) - second)
    assert difference.mean() < 0.5
    assert difference.max() <= 4


def test_only_what_can_be_is_decoded_smaller(tmp_path: Path) -> None:
    Image.fromarray(photograph(640, 512)).save(tmp_path / "p.png")
    assert decode(tmp_path / "p.png", canvas=(16, 16)).reduction == 1
    Image.fromarray(photograph(640, 512)).save(tmp_path / "p.jpg")
    assert decode(tmp_path / "p.jpg", (640, 512), canvas=(16, 16)).size == (640, 512)
    with pytest.raises(DataError, match="is 640x512 and the annotations say 648x512"):
        decode(tmp_path / "p.jpg", (648, 512), canvas=(16, 16))


def test_an_orientation_that_is_no_number_is_none(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    number, bytes_ = b"\x01\x12\x00\x03", b"\x01\x12\x00\x07"  # the tag and its type
    content = (tmp_path / "a.jpg").read_bytes()
    assert number in content
    (tmp_path / "a.jpg").write_bytes(content.replace(number, bytes_))
    with Image.open(tmp_path / "a.jpg") as image:
        assert isinstance(image.getexif()[ExifTags.Base.Orientation], bytes)
    assert load_rgb(tmp_path / "a.jpg").shape == (20, 40, 3)
    assert decode(tmp_path / "a.jpg", canvas=(4, 4)).size == (40, 20)


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what is odd in a file
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_damage_anywhere_is_one_line_or_an_image(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    path = tmp_path / f"a.{kind.lower()}"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(path, kind, exif=exif)
    whole = path.read_bytes()
    messages = []
    for _ in range(150):
        content = bytearray(whole)
        for place in rng.integers(0, min(len(whole), int(rng.choice([64, 400, 1 << 20]))), rng.integers(1, 6)):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content[: None if rng.random() < 0.8 else int(rng.integers(1, len(content)))])
        try:
            assert load_rgb(path).shape[2] == 3
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert all(str(path) in message and "\n" not in message for message in messages)
