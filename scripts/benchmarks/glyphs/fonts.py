"""Glyphs of many scripts, rendered from the fonts in a folder."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray

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
PLANE = 48
"""Side of a rendered glyph."""
_INK, _DRAWN = 34, 96  # the larger side of the ink in it, and the size at which fonts draw
# Two glyphs are the same if the correlation of their blurred images is above this.
_ALIKE, _BLUR = 0.94, 1.5
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
    taken = np.zeros((0, PLANE * PLANE), np.float32)
    for name, ranges in SCRIPTS.items():
        wanted = [c for first, last in ranges for c in range(first, last + 1) if unicodedata.category(chr(c))[0] == "L"]
        path, has = max(known, key=lambda font: len(font[1].intersection(wanted)), default=(None, frozenset[int]()))
        found = 0
        for image, letter in _drawn(path, [c for c in wanted if c in has]) if path else ():
            row = _profile(image)
            if found == most:
                break
            if len(taken) and float((taken @ row).max()) > _ALIKE:
                continue
            taken = np.concatenate([taken, row[None]])
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


def _drawn(path: Path, codes: Sequence[int]) -> Iterator[tuple[NDArray[np.float32], str]]:
    """Images of characters in the middle of the plane, and the characters; those without ink are left out."""
    font = FT2Font(str(path))
    font.set_size(_DRAWN, 72)
    for code in codes:
        font.set_text(chr(code), 0.0)
        font.draw_glyphs_to_bitmap(antialiased=True)
        drawn = np.asarray(font.get_image(), np.float32) / 255
        inked = [np.flatnonzero(drawn.any(axis=axis)) for axis in (1, 0)]
        if not len(inked[0]):
            continue
        ink = drawn[inked[0][0] : inked[0][-1] + 1, inked[1][0] : inked[1][-1] + 1]
        scale = _INK / max(ink.shape)
        height, width = (max(2, round(n * scale)) for n in ink.shape)
        small = cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA)
        y, x = (PLANE - height) // 2, (PLANE - width) // 2
        yield np.pad(small, ((y, PLANE - height - y), (x, PLANE - width - x))), chr(code)


def _profile(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The blurred image as a vector without mean, of length one."""
    row = cv2.GaussianBlur(image, (0, 0), _BLUR).ravel()
    row = row - row.mean()
    return np.asarray(row / np.linalg.norm(row), np.float32)
