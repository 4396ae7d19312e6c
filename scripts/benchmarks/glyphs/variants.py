"""Variants that the benchmark compares, each with the control that it must beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.glyphs.routing import ByChance
from coarse2fine.fitting.classes.grow_forks import Recipe, Step

# Stages before the reader; its outputs are the classes.
TRUNK = "6/2:8 4/2:16 3:24 2:32"
WIDER = "6/2:8 4/2:16 3:40 2:48"
BASE, ON, WIDE = "trunk", "trained on", "wider"
ORACLE, BORDERS, FEATURES = "oracle routing", "two at borders", "routed by the trunk"
FORK = 2
"""Stage at which trees fork first: the input is a map of 4 x 4."""
_RATE = 1e-3


class Variant(NamedTuple):
    """A description, the variant that it is compared with, and how forks are grown; None for nets end to end."""

    text: str
    control: str = ON
    recipe: Recipe | None = None


def _forks(*steps: Step, own_heads: bool = True, also: float = 1.0) -> Recipe:
    return Recipe(steps, rate=_RATE, own_heads=own_heads, also=also)


VARIANTS: Mapping[str, Variant] = {
    BASE: Variant("the trunk, trained end to end", BASE),
    ON: Variant("the trunk, trained on with the samples that all specialists of a tree had together", BASE),
    WIDE: Variant("a wider net, trained end to end with all these samples", ON),
    "shared": Variant("one fork for all", ON, Recipe((Step(FORK, 1),), rate=_RATE, router=ByChance)),
    "random": Variant(
        "16 forks, tiles dealt at random", "shared", Recipe((Step(FORK, 16),), rate=_RATE, router=ByChance)
    ),
    "heads": Variant("16 cluster heads (forks of the reader alone)", "shared", _forks(Step(4, 16), own_heads=False)),
    "forks": Variant("16 forks", "shared", _forks(Step(FORK, 16), own_heads=False)),
    "own heads": Variant("16 forks with heads of their own classes", ON, _forks(Step(FORK, 16))),
    "own heads 64": Variant("the same with 64", ON, _forks(Step(FORK, 64))),
    "own heads, borders": Variant(
        "16 forks with heads of their own classes, trained on tiles at the borders of other kinds too",
        "own heads",
        _forks(Step(FORK, 16), also=0.2),
    ),
    "4 x 4": Variant("a tree of two steps, as many leaves", "own heads", _forks(Step(FORK, 4, 0.5), Step(3, 4))),
    "4 x 4 x 4": Variant(
        "a tree of three steps",
        "own heads 64",
        _forks(Step(FORK, 4, 0.4), Step(FORK, 4, 0.7), Step(3, 4)),
    ),
}
ROUTED = "forks"
"""The variant whose routing is measured in other ways."""
ONCE = (WIDE, "own heads 64", "own heads, borders", "4 x 4 x 4")
"""Variants of the first seed alone."""
FEW = (BASE, ON, "shared", "random", "heads", "forks", "own heads", "4 x 4")
