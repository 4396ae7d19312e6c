"""Glyphs of many scripts, rendered from the fonts in a folder."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray

from coarse2fine.demo.glyph_scene import Distinct, drawn

# First and last code point of the letters of each script; more than one range where letters are scattered.
SCRIPTS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "Latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x17F)),
    "Greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "Cyrillic": ((0x400, 0x52F),),
    "Armenian": ((0x531, 0x586),),
    "Hebrew": ((0x5D0, 0x5EA),),
    "Arabic": ((0x620, 0x6D3),),
    "Devanagari": ((0x904, 0x97F),),
    "Bengali": ((0x985, 0x9E1),),
    "Gujarati": ((0xA85, 0xAE1),),
    "Tamil": ((0xB85, 0xBB9),),
    "Telugu": ((0xC05, 0xC61),),
    "Kannada": ((0xC85, 0xCE1),),
    "Malayalam": ((0xD05, 0xD61),),
    "Sinhala": ((0xD85, 0xDC6),),
    "Thai": ((0xE01, 0xE45),),
    "Tibetan": ((0xF40, 0xF6C),),
    "Georgian": ((0x10A0, 0x10FF),),
    "Ethiopic": ((0x1200, 0x135A),),
    "Cherokee": ((0x13A0, 0x13F5),),
    "Canadian syllabics": ((0x1401, 0x166C),),
    "Khmer": ((0x1780, 0x17B3),),
    "Kana": ((0x3041, 0x3096), (0x30A1, 0x30FA)),
    "Vai": ((0xA500, 0xA60B),),
    "Yi": ((0xA000, 0xA48C),),
    "Hangul": ((0xAC00, 0xD7A3),),
    "Han": ((0x4E00, 0x9FFF),),
}
_SUFFIXES = (".ttf", ".otf", ".ttc")


@dataclass(frozen=True, eq=False)
class Glyphs:
    """Classes of glyphs.

    Parameters
    ----------
    images : ndarray, float32, (n, PLANE, PLANE)
        Ink from 0 to 1.
    scripts : ndarray, int64, (n,)
        Index in `names`.
    names : tuple of str
        Scripts.
    letters : str
        The character of each class.
    """

    images: NDArray[np.float32]
    scripts: NDArray[np.int64]
    names: tuple[str, ...]
    letters: str

    def __len__(self) -> int:
        return len(self.images)


def load_glyphs(folder: Path | None, *, most: int) -> Glyphs:
    """Render at most `most` letters of each of `SCRIPTS` that some font has.

    Each script is drawn by the font with most of its letters. Letters that look like one taken before are left out.

    Parameters
    ----------
    folder : Path or None
        Folder with font files, searched with its subfolders; by default the system's.
    most : int
        Letters of each script.

    Raises
    ------
    FileNotFoundError
        If there are fonts of fewer than two scripts.
    """
    known = list(_fonts(folder))
    images: list[NDArray[np.float32]] = []
    scripts: list[int] = []
    names: list[str] = []
    letters = ""
    is_new = Distinct()
    for name, ranges in SCRIPTS.items():
        wanted = [c for first, last in ranges for c in range(first, last + 1) if unicodedata.category(chr(c))[0] == "L"]
        path, has = max(known, key=lambda font: len(font[1].intersection(wanted)), default=(None, frozenset[int]()))
        found = 0
        for image, letter in drawn(path, [c for c in wanted if c in has]) if path else ():
            if found == most:
                break
            if not is_new(image):
                continue
            images.append(image)
            scripts.append(len(names))
            letters, found = letters + letter, found + 1
        names += [name] if found else []
    if len(names) < 2:
        place = "the system's fonts" if folder is None else f"the fonts in {folder}"
        raise FileNotFoundError(
            f"expected fonts of at least two of {', '.join(SCRIPTS)}; {place} have letters of "
            f"{', '.join(names) or 'none of them'}. Give a folder of TTF, OTF or TTC files (Noto has all scripts)"
        )
    return Glyphs(np.stack(images), np.array(scripts), tuple(names), letters)


def _fonts(folder: Path | None) -> Iterator[tuple[Path, frozenset[int]]]:
    """Each readable font file, upright and regular ones first, with its code points."""
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; expected a folder of fonts")
    every = map(Path, font_manager.findSystemFonts()) if folder is None else folder.rglob("*")
    usual = sorted((p for p in every if p.suffix.lower() in _SUFFIXES), key=lambda p: ("Regular" not in p.name, str(p)))
    for path in usual:
        try:
            yield path, frozenset(FT2Font(str(path)).get_charmap())
        except (RuntimeError, OSError):
            continue
