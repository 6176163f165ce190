"""Fonts for class names beyond ASCII, which is all that Pillow's own font covers."""

import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from unicodedata import category

from PIL import ImageFont

__all__ = ["Font", "font_for"]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# of the extra `fonts`, all under the SIL Open Font License
_PACKAGES = (
    "fontpkg-noto-sans",
    "noto-cjk-sans-otc",
    "fontpkg-noto-sans-arabic",
    "fontpkg-noto-sans-devanagari",
    "fontpkg-noto-sans-thai",
)
_SUFFIXES = frozenset({".ttf", ".ttc", ".otf", ".otc"})
_FANCY = ("italic", "oblique", "mono", "serif", "condensed", "light", "thin", "black", "bold")
_SCORE = "0123456789."
_NO_CHARACTER = "\U0010fffe"
_WITHOUT_GLYPH = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})


@lru_cache(maxsize=4096)
def font_for(text: str, size: int) -> Font | None:
    """Return the first font of ``size`` pixels with the letters of a text and a score, ``None`` if no font has them.

    Searches Pillow's own font, those of the extra ``fonts``, then the installed ones.
    """
    own = ImageFont.load_default(size)
    if text.isascii() or _has(own, text):
        return own
    for file in _font_files():
        try:
            font = ImageFont.truetype(file, size)
            if _has(font, text):
                return font
        except OSError:  # damaged, or bitmaps of another size
            continue
    return None


def _has(font: Font, text: str) -> bool:
    missing = font.getmask(_NO_CHARACTER)

    def is_missing(letter: str) -> bool:
        drawn = font.getmask(letter)
        return drawn.size == missing.size and bytes(drawn) == bytes(missing)

    return not any(is_missing(letter) for letter in {*text, *_SCORE} if category(letter) not in _WITHOUT_GLYPH)


@lru_cache(maxsize=1)
def _font_files() -> tuple[str, ...]:
    """List font files of the extra and of this system, upright sans-serif ones first."""
    packaged = []
    for name in _PACKAGES:
        try:
            files = metadata.files(name) or ()
        except metadata.PackageNotFoundError:
            continue
        packaged += [str(file.locate()) for file in files if file.suffix in _SUFFIXES and "Italic" not in file.name]
    found = [file for folder in _folders() for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES]
    installed = sorted(found, key=lambda file: (sum(word in file.name.lower() for word in _FANCY), str(file)))
    return (*packaged, *map(str, installed))


def _folders() -> Iterator[Path]:
    home = Path.home()
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"
        yield home / "AppData/Local/Microsoft/Windows/Fonts"
    elif sys.platform == "darwin":
        yield from (home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts"))
    else:
        shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        yield from (home / ".local/share/fonts", home / ".fonts", *(Path(one) / "fonts" for one in shared.split(":")))
