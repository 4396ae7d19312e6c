"""Pictures of specialists: example tiles of each kind."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def draw_examples(rows: Sequence[tuple[str, NDArray[np.uint8]]], path: str | os.PathLike[str]) -> Path:
    """Draw one row of tiles for each kind, with a text beside it.

    Parameters
    ----------
    rows : sequence of (str, ndarray)
        Text and example tiles, uint8, (n, h, w, c).
    path : path
        A PNG, PDF or SVG file.
    """
    from matplotlib import rc_context  # noqa: PLC0415 - slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    with rc_context({"text.parse_math": False}):  # a class may be named $x_
        figure = _drawn(Figure, rows)
        target = Path(path)
        figure.savefig(target, dpi=150)
    return target


def _drawn(make: Callable[..., Any], rows: Sequence[tuple[str, NDArray[np.uint8]]]) -> Any:
    count = max((len(tiles) for _, tiles in rows), default=1)
    figure = make(figsize=(3.5 + 0.6 * count, 0.9 * max(len(rows), 1)), layout="constrained")
    axes = figure.subplots(max(len(rows), 1), count, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for line, (text, tiles) in zip(axes, rows, strict=False):
        for axis, tile in zip(line, tiles, strict=False):
            axis.imshow(tile, cmap="gray", vmin=0, vmax=255)
        line[0].annotate(text, (-0.1, 0.5), xycoords="axes fraction", ha="right", va="center", fontsize=7)
    return figure
