"""Draw how specialists work: columns in a tree beside the refine net, and columns that the scan chooses for blocks.

specialists.svg  boxes and arrows; nothing is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLUE, ORANGE, GREEN, GREY, LIGHT = "#0072b2", "#d55e00", "#009e73", "#777777", "#dddddd"
_STAGES, _RISE, _CELLS, _BLOCK = 4, 1.15, 8, 2
_TWINS = "dashed: each stage also reads its twin,\nthe same stage of the net and of the column above"
_SCAN = "scan: a feature fires in cells;\nno full-resolution pixel is\nread yet"
_REFINE = (
    "refine: its columns run in the\nblocks around, all stages, beside\n"
    "the refine net; both in a block\nwhere both fire"
)
# Blocks (row, column) in which each of two groups of features fires.
_FIRES = {BLUE: ((0, 1), (2, 0)), ORANGE: ((2, 0), (3, 3))}


def draw_mechanism(path: Path = DOCS / "specialists.svg") -> None:
    """Draw the figure."""
    mpl.rcParams.update({"svg.hashsalt": "coarse2fine", "font.size": 9.5})
    figure = Figure((10.2, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.05, 1))
    for axes in (left, right):
        axes.set_aspect("equal")
        axes.axis("off")
    _tree(left)
    _blocks(right)
    FigureCanvasAgg(figure)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    print(f"written {path}", flush=True)


def _box(axes: Any, x: float, y: float, width: float, colour: str, *, fill: bool = True) -> None:
    """A stage: a bar centred at x, as wide as it has channels."""
    face = colour if fill else "white"
    axes.add_patch(Rectangle((x - width / 2, y), width, 0.42, fc=face, ec=colour, lw=1.4, alpha=0.9 if fill else 1))


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str = GREY, **style: Any) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.1, **style})


def _tree(axes: Any) -> None:
    """The refine net, a column for a kind of cells, and one for a kind within it."""
    columns = (
        (1.3, 1.9, GREY, "refine net"),
        (4.6, 1.2, BLUE, "column\nof kind 2"),
        (7.3, 0.7, ORANGE, "column of\nkind 2.1"),
    )
    for number, (x, widest, colour, name) in enumerate(columns):
        for stage in range(_STAGES):
            y, width = 1 + stage * _RISE, widest * (0.45 + 0.55 * stage / (_STAGES - 1))
            _box(axes, x, y, width, colour)
            if stage:
                _arrow(axes, (x, y - _RISE + 0.44), (x, y - 0.02))
            if number:  # the twin: the same stage of the net, and of the column above
                before, broad, *_ = columns[number - 1]
                share = 0.45 + 0.55 * stage / (_STAGES - 1)
                _arrow(axes, (before + broad * share / 2, y + 0.21), (x - width / 2 - 0.03, y + 0.21), linestyle="--")
        axes.text(x, 0.5, name, ha="center", va="top", color=colour)
    top = 1 + _STAGES * _RISE
    for x, word, step in ((1.3, "answer", 0), (4.6, "+", 1), (7.3, "+", 2)):
        axes.text(x, top + 0.15, word, ha="center", color=columns[step][2], fontsize=11)
    for before, after, kinds in ((1.3, 4.6, "its features say:\nkind 1, 2 or 3"), (4.6, 7.3, "kind 2.1\nor 2.2")):
        _arrow(axes, (before + 0.5, top + 0.75), (after, top + 0.75), connectionstyle="arc3,rad=-0.25")
        axes.text((before + after) / 2 + 0.2, top + 1.45, kinds, ha="center")
    axes.text(
        4.3,
        -0.75,
        "dashed: each stage also reads its twin,\nthe same stage of the net and of the column above",
        ha="center",
        va="top",
        color=GREY,
    )
    axes.set(xlim=(-0.2, 8.6), ylim=(-1.7, top + 3.0))
    axes.set_title("Kinds of cells: a tree of columns", fontsize=11)


def _blocks(axes: Any) -> None:
    """The scan's grid with two groups of features that fire, and the blocks of the image in which columns run."""
    for x, fine in ((0.0, False), (7.0, True)):
        side = _CELLS / 2
        for n in np.linspace(0, side, _CELLS + 1):
            axes.plot([x, x + side], [n, n], color=LIGHT, lw=0.7)
            axes.plot([x + n, x + n], [0, side], color=LIGHT, lw=0.7)
        for colour, blocks in _FIRES.items():
            for row, column in blocks:
                _fired(axes, x, row, column, colour, whole=fine)
        axes.add_patch(Rectangle((x, 0), side, side, fill=False, ec=GREY))
    _arrow(axes, (4.3, 2), (6.7, 2))
    axes.text(5.5, 2.2, "which columns\nrun where", ha="center", va="bottom")
    for x, words in ((0, _SCAN), (7, _REFINE)):
        axes.text(x, -0.25, words, ha="left", va="top", color=GREY)
    for y, (colour, name) in zip(
        (4.75, 4.3), ((BLUE, "group of features A"), (ORANGE, "group of features B")), strict=True
    ):
        axes.add_patch(Rectangle((0, y), 0.3, 0.3, fc=colour, ec=colour, alpha=0.85))
        axes.text(0.45, y + 0.02, name, color=colour)
    axes.set(xlim=(-0.3, 11.6), ylim=(-1.9, 5.6))
    axes.set_title("At a first glance: columns that the scan chooses", fontsize=11)


def _fired(axes: Any, x: float, row: int, column: int, colour: str, *, whole: bool) -> None:
    """A block, whole or as the one of its cells that fires."""
    half = _BLOCK / 2
    left, low = x + column * half, row * half
    if whole:
        hatch = "////" if colour == BLUE else "\\\\\\\\"
        axes.add_patch(Rectangle((left, low), half, half, fc="none", ec=colour, hatch=hatch, lw=1.4))
    else:
        shift = 0.0 if colour == BLUE else 0.5
        axes.add_patch(Rectangle((left + shift, low + shift), 0.5, 0.5, fc=colour, ec=colour, alpha=0.85))


if __name__ == "__main__":
    draw_mechanism()
