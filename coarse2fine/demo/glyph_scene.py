"""Letters rendered from a font, and scenes of letters of many scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.demo.ink_scene import CANVAS, Alphabet, InkScene

PLANE = 48
"""Side of a rendered letter."""
ALIKE = 0.94
"""Two letters are the same if the correlation of their blurred images is above this."""
_INK, _DRAWN = 34, 96  # the larger side of the ink in it, and the size at which fonts draw
_BLUR = 1.5
_FIELD = 60  # the larger side of the ink on a scene's canvas
# Scripts of DejaVu Sans, which comes with matplotlib, by first and last code point.
SCRIPTS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "Latin": ((0x41, 0x24F),),
    "Greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "Cyrillic": ((0x400, 0x52F),),
    "Armenian": ((0x531, 0x586),),
    "Hebrew": ((0x5D0, 0x5EA),),
    "Arabic": ((0x620, 0x6D3),),
    "NKo": ((0x7CA, 0x7EA),),
    "Lao": ((0xE81, 0xEDD),),
    "Georgian": ((0x10A0, 0x10FA),),
    "Syllabics": ((0x1401, 0x1676),),
    "Ogham": ((0x1681, 0x169A),),
    "Tifinagh": ((0x2D30, 0x2D65),),
    "Lisu": ((0xA4D0, 0xA4F7),),
}


class GlyphScene(InkScene):
    """A textured scene with letters of `SCRIPTS` and clutter; labels are script and letter.

    Parameters
    ----------
    height, width : int
        Size in pixels.
    letters, clutter : int
        Number of marks of each sort, see `InkScene`.
    seed : int
        Seed of the scene: the same arguments give the same pixels.
    most : int
        Most letters of each script.

    Raises
    ------
    ValueError
        If a size or number is out of its range, or the marks do not fit.
    """

    def __init__(self, height: int, width: int, *, letters: int, clutter: int, seed: int, most: int = 90) -> None:
        labels, fields = _alphabet(most)
        super().__init__(
            height, width, Alphabet(labels, lambda i: fields[i]), marks=letters, clutter=clutter, seed=seed
        )


class Distinct:
    """Tells rendered letters that look like none before, and remembers them."""

    def __init__(self) -> None:
        self._taken = np.zeros((0, PLANE**2), np.float32)

    def __call__(self, image: NDArray[np.float32]) -> bool:
        """Whether no letter before is `ALIKE`."""
        row = profile(image)
        if len(self._taken) and float((self._taken @ row).max()) > ALIKE:
            return False
        self._taken = np.concatenate([self._taken, row[None]])
        return True


@lru_cache(maxsize=2)
def _alphabet(most: int) -> tuple[list[str], NDArray[np.float32]]:
    """Labels, and the ink of each letter on the canvas of a scene; letters that look like an earlier one are left out.

    Parameters
    ----------
    most : int
        Most letters of each script, spread over it.
    """
    from matplotlib import get_data_path  # noqa: PLC0415 - slow to import

    font = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    labels: list[str] = []
    fields: list[NDArray[np.float32]] = []
    is_new = Distinct()
    for name, ranges in SCRIPTS.items():
        codes = [code for first, last in ranges for code in range(first, last + 1) if chr(code).isalpha()]
        own = [(image, letter) for image, letter in drawn(font, codes) if is_new(image)]
        for i in np.unique(np.linspace(0, len(own) - 1, min(most, len(own))).round().astype(int)).tolist():
            labels.append(f"{name} {own[i][1]}")
            fields.append(_field(own[i][0]))
    return labels, np.stack(fields)


def _field(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """A rendered letter on the canvas of a scene."""
    side = round(PLANE * _FIELD / _INK)
    large = cv2.GaussianBlur(cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC), (0, 0), 1.0)
    rim = (side - CANVAS) // 2
    return np.asarray(large[rim : rim + CANVAS, rim : rim + CANVAS], np.float32)


def drawn(path: Path, codes: Sequence[int]) -> Iterator[tuple[NDArray[np.float32], str]]:
    """Images of characters in the middle of the plane, and the characters; those without ink are left out."""
    from matplotlib.ft2font import FT2Font  # noqa: PLC0415 - slow to import

    font = FT2Font(str(path))
    font.set_size(_DRAWN, 72)
    has = font.get_charmap()
    for code in (each for each in codes if each in has):
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


def profile(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The blurred image as a vector without mean, of length one."""
    row = cv2.GaussianBlur(image, (0, 0), _BLUR).ravel()
    row = row - row.mean()
    return np.asarray(row / np.linalg.norm(row), np.float32)
