"""Synthetic scenes of characters, of any size, rendered block by block as a pure function of position.

Each scene holds characters (the truth) and clutter: marks of the same size, ink and arrangement that are none. At 1/8
of the resolution the two look alike; only full resolution separates them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.demo.texture import Ground
from coarse2fine.tiling.geometry import Box, ceil_div

_SMALLEST, _LARGEST = 28, 48  # longer side of a mark
_APART = 12  # least gap between two marks
_ROW_GAPS = (14, 21)  # gap between the marks of one row
CANVAS = 80
"""Side of the canvas on which a mark is drawn before it is brought to its size."""
CLUTTER = ("scrambled", "stroke")
"""Labels of marks that are no characters."""
_FAINTEST = 32  # coverage (of 255) below which ink is invisible and left out


@dataclass(frozen=True)
class PlacedObject:
    """A mark and its position.

    Parameters
    ----------
    label : str
        The character's; one of `CLUTTER` for clutter.
    full_box : Box
        Tight box of the visible ink, in pixels of the scene.
    """

    label: str
    full_box: Box


@dataclass(frozen=True)
class _Mark:
    label: str
    alpha: NDArray[np.uint8]  # coverage, cropped to the visible ink
    contrast: int  # grey levels between full cover and ground; negative is dark ink


@dataclass(frozen=True)
class Alphabet:
    """Characters to draw.

    Parameters
    ----------
    labels : sequence of str
        The class of each.
    field : callable
        From the number of a character to its ink on a canvas, float32, (CANVAS, CANVAS), 0 to 1, with room to turn it.
    """

    labels: Sequence[str]
    field: Callable[[int], NDArray[np.float32]]


class InkScene:
    """A textured scene with characters and clutter.

    Parameters
    ----------
    height, width : int
        Size in pixels.
    alphabet : Alphabet
    marks, clutter : int
        Number of characters, and of look-alikes. A third of each lies in rows of two to four, the rest anywhere.
    seed : int
        Seed of the scene: the same arguments give the same pixels.

    Attributes
    ----------
    objects : tuple of PlacedObject
        The characters, from top to bottom.
    clutter : tuple of PlacedObject
        The look-alikes, from top to bottom.

    Raises
    ------
    ValueError
        If a size or number is out of its range, or the marks do not fit.
    """

    objects: tuple[PlacedObject, ...]
    clutter: tuple[PlacedObject, ...]

    def __init__(self, height: int, width: int, alphabet: Alphabet, *, marks: int, clutter: int, seed: int) -> None:
        if height < 1 or width < 1:
            raise ValueError(f"a scene needs a height and width of at least 1 pixel, got {height} x {width}")
        if marks < 0 or clutter < 0 or seed < 0:
            raise ValueError(f"expected numbers of at least 0, got {marks=}, {clutter=}, {seed=}")
        self.height, self.width = height, width
        self._ground = Ground(np.random.default_rng([seed, 0]))
        rng = np.random.default_rng([seed, 1])
        rows = [_draw_row(rng, n, alphabet, spoiled=False) for n in _row_lengths(rng, marks)]
        rows += [_draw_row(rng, n, alphabet, spoiled=True) for n in _row_lengths(rng, clutter)]
        self._marks = sorted(_place(rng, rows, height, width), key=lambda placed: placed[0])
        self._corners = np.array([(b.y0, b.x0, b.y1, b.x1) for b, _ in self._marks], np.int64).reshape(-1, 4)
        placed = [PlacedObject(mark.label, box) for box, mark in self._marks]
        self.objects = tuple(p for p in placed if p.label not in CLUTTER)
        self.clutter = tuple(p for p in placed if p.label in CLUTTER)

    def block(self, full_box: Box) -> NDArray[np.uint8]:
        """Render one block.

        Parameters
        ----------
        full_box : Box
            Any box inside the scene. Pixels do not depend on the block in which they are rendered.

        Returns
        -------
        ndarray of uint8, shape (height, width, 1)
            Grey levels.

        Raises
        ------
        ValueError
            If the box reaches outside the scene.
        """
        if full_box.y0 < 0 or full_box.x0 < 0 or full_box.y1 > self.height or full_box.x1 > self.width:
            raise ValueError(f"expected a box inside the scene of {self.height} x {self.width}, got {full_box}")
        pixels = self._ground.paint(full_box)
        y0, x0, y1, x1 = self._corners.T
        near = (y0 < full_box.y1) & (y1 > full_box.y0) & (x0 < full_box.x1) & (x1 > full_box.x0)
        for index in np.flatnonzero(near):
            self._ink(pixels, full_box, *self._marks[index])
        return pixels[:, :, None]

    def annotations(self) -> dict[str, Any]:
        """The characters as a GeoJSON FeatureCollection of boxes (x, y), as QuPath reads and writes it."""
        return {"type": "FeatureCollection", "features": [_feature(each) for each in self.objects]}

    def _ink(self, pixels: NDArray[np.uint8], full_box: Box, box: Box, mark: _Mark) -> None:
        common = box.intersect(full_box)
        assert common is not None
        level = self._ground.tone((box.y0 + box.y1) // 2, (box.x0 + box.x1) // 2) + mark.contrast
        view = pixels[common.shift(-full_box.y0, -full_box.x0).slices]
        alpha = mark.alpha[common.shift(-box.y0, -box.x0).slices].astype(np.int32)
        view[:] = (view * (255 - alpha) + min(max(level, 0), 255) * alpha + 127) // 255


def _feature(placed: PlacedObject) -> dict[str, Any]:
    b = placed.full_box
    ring = [[b.x0, b.y0], [b.x1, b.y0], [b.x1, b.y1], [b.x0, b.y1], [b.x0, b.y0]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", "classification": {"name": placed.label}},
    }


def _draw_row(rng: np.random.Generator, length: int, alphabet: Alphabet, *, spoiled: bool) -> list[_Mark]:
    """Draw the marks of one row, of similar size and the same ink."""
    size = rng.uniform(_SMALLEST, _LARGEST)
    opacity = rng.uniform(0.65, 0.85)  # the ground's texture shows through
    contrast = round(rng.choice((-1, 1)) * rng.uniform(45, 80) / opacity)
    row = []
    for index in rng.integers(len(alphabet.labels), size=length).tolist():
        field, label = alphabet.field(index), alphabet.labels[index]
        if spoiled:
            label = str(rng.choice(CLUTTER))
            field = _scramble(rng, field) if label == CLUTTER[0] else _scribble(rng, field)
        longer = int(np.clip(round(size * rng.uniform(0.92, 1.08)), _SMALLEST, _LARGEST))
        alpha = _finish(field, rng.uniform(-12, 12), longer, opacity)
        row.append(_Mark(label, alpha, contrast))
    return row


def _ink_box(field: NDArray[Any], threshold: float) -> Box:
    x, y, w, h = cv2.boundingRect((field > threshold).astype(np.uint8))
    return Box(y, x, y + h, x + w)


def _scramble(rng: np.random.Generator, field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut a character into patches, shuffle and rotate them: the same ink and size, but no character."""
    box = _ink_box(field, 0.35)
    n = int(rng.integers(3, 5))
    height, width = ceil_div(box.height, n), ceil_div(box.width, n)
    whole = cv2.resize(field[box.slices], (width * n, height * n))
    patches = whole.reshape(n, height, n, width).swapaxes(1, 2).reshape(n * n, height, width)
    turned = [
        cv2.resize(np.rot90(patches[i], int(rng.integers(4))).copy(), (width, height)) for i in rng.permutation(n * n)
    ]
    shuffled = np.stack(turned).reshape(n, n, height, width).swapaxes(1, 2).reshape(whole.shape)
    canvas = np.zeros_like(field)
    top, left = (CANVAS - whole.shape[0]) // 2, (CANVAS - whole.shape[1]) // 2
    canvas[top : top + whole.shape[0], left : left + whole.shape[1]] = shuffled
    # The blur closes the cuts; the factor restores the strength of the strokes.
    return np.asarray(1.2 * cv2.GaussianBlur(canvas, (0, 0), 1.3), np.float32)


def _scribble(rng: np.random.Generator, field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Draw a few curved strokes in the box of a character."""
    box = _ink_box(field, 0.35)
    canvas = np.zeros(field.shape, np.float32)
    t = np.linspace(0, 1, 16)[:, None]
    for _ in range(int(rng.integers(2, 5))):
        # Take the longest of a few random curves: short ones would only make blots.
        ends = rng.uniform((box.x0, box.y0), (box.x1, box.y1), (4, 3, 2))
        a, b, c = ends[np.linalg.norm(ends[:, 2] - ends[:, 0], axis=1).argmax()]
        curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
        cv2.polylines(canvas, [np.round(curve).astype(np.int32)], False, 1.0, int(rng.integers(6, 10)))
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), 2.7), np.float32)


def _finish(field: NDArray[np.float32], degrees: float, longer: int, opacity: float) -> NDArray[np.uint8]:
    """Rotate a field, sharpen its strokes, and scale its visible ink to a box with the given longer side."""
    turn = cv2.getRotationMatrix2D((CANVAS / 2, CANVAS / 2), degrees, 1.0)
    ramp = np.clip((cv2.warpAffine(field, turn, (CANVAS, CANVAS)) - 0.35) / 0.25, 0, 1)
    alpha = np.asarray(ramp * ramp * (3 - 2 * ramp) * (255 * opacity), np.float32)
    box = _ink_box(alpha, _FAINTEST)
    scale = longer / max(box.height, box.width)
    size = (max(1, round(box.width * scale)), max(1, round(box.height * scale)))
    small = np.round(cv2.resize(alpha[box.slices], size, interpolation=cv2.INTER_AREA)).astype(np.uint8)
    small[small < _FAINTEST] = 0
    return small[_ink_box(small, 0).slices].copy()


def _row_lengths(rng: np.random.Generator, count: int) -> Iterator[int]:
    """Split a number of marks into rows: a third in rows of two to four, the others alone."""
    in_rows = count // 3
    while in_rows >= 2:
        length = min(int(rng.integers(2, 5)), in_rows)
        yield length
        in_rows -= length
        count -= length
    yield from [1] * count


def _place(rng: np.random.Generator, rows: Sequence[list[_Mark]], height: int, width: int) -> list[tuple[Box, _Mark]]:
    """Place every mark, rows first; a row that fits nowhere is split into single marks."""
    crowd = _Crowd(rng, height, width)
    placed: list[tuple[Box, _Mark]] = []
    pending = sorted(rows, key=len)
    while pending:
        row = pending.pop()
        boxes = crowd.find_room([mark.alpha.shape for mark in row])
        if boxes:
            placed += zip(boxes, row, strict=True)
        elif len(row) > 1:
            pending += [[mark] for mark in row]
        else:
            raise ValueError(
                f"found room for only {len(placed)} of {sum(map(len, rows))} marks in a scene of {height} x "
                f"{width}; ask for fewer marks and clutter, or for a larger scene"
            )
    return placed


class _Crowd:
    """Boxes placed so far, in a coarse grid for quick look-up."""

    _CELL = 128
    _TRIES = 400

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self._rng = rng
        self._size = (height, width)
        self._grid: defaultdict[tuple[int, int], list[Box]] = defaultdict(list)

    def find_room(self, shapes: Sequence[tuple[int, ...]]) -> list[Box] | None:
        row = self._lay_out(shapes)
        spare_y = self._size[0] - max(b.y1 for b in row)
        spare_x = self._size[1] - row[-1].x1
        if spare_y < 0 or spare_x < 0:
            return None
        for _ in range(self._TRIES):
            dy, dx = int(self._rng.integers(spare_y + 1)), int(self._rng.integers(spare_x + 1))
            boxes = [b.shift(dy, dx) for b in row]
            if all(self._is_free(b) for b in boxes):
                for b in boxes:
                    for cell in self._cells(b):
                        self._grid[cell].append(b)
                return boxes
        return None

    def _lay_out(self, shapes: Sequence[tuple[int, ...]]) -> list[Box]:
        """Place the marks side by side from the origin, each up to 3 pixels off a common middle line."""
        tops = [int(self._rng.integers(-3, 4)) - h // 2 for h, _ in shapes]
        x, row = 0, []
        for top, (h, w) in zip(tops, shapes, strict=True):
            y = top - min(tops)
            row.append(Box(y, x, y + h, x + w))
            x += w + int(self._rng.integers(*_ROW_GAPS))
        return row

    def _is_free(self, box: Box) -> bool:
        near = box.expand(_APART)
        return not any(near.intersect(other) for cell in self._cells(near) for other in self._grid[cell])

    def _cells(self, box: Box) -> Iterator[tuple[int, int]]:
        for y in range(box.y0 // self._CELL, ceil_div(box.y1, self._CELL)):
            for x in range(box.x0 // self._CELL, ceil_div(box.x1, self._CELL)):
                yield y, x
