"""Variants that the benchmark compares, each with the control that it must beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.glyphs.routing import ByChance
from coarse2fine.fitting.classes.grow_forks import Recipe, Step

# Stages before the reader; its outputs are the classes.
TRUNK = "6/2:8 4/2:16 3:40 2:48"
WIDER = "6/2:8 4/2:16 3:48 2:56"
BASE, ON, WIDE = "trunk", "trained on", "wider"
ORACLE, BORDERS = "oracle routing", "two at borders"
FORK = 2
"""Stage at which trees fork first: the input is a map of 4 x 4."""
_RATE = 1e-3


class Variant(NamedTuple):
    """A description, the variant that it is compared with, and how forks are grown; None for nets end to end."""

    text: str
    control: str = ON
    recipe: Recipe | None = None


def _forks(*steps: Step, own_heads: bool = False) -> Recipe:
    return Recipe(steps, rate=_RATE, own_heads=own_heads)


VARIANTS: Mapping[str, Variant] = {
    BASE: Variant("the trunk, trained end to end", BASE),
    ON: Variant("the trunk, trained on with the samples that all specialists of a tree had together", BASE),
    WIDE: Variant("a net with the cost of 64 forks, trained end to end with all these samples", ON),
    "shared": Variant("one fork for all", ON, Recipe((Step(FORK, 1),), rate=_RATE, router=ByChance)),
    "random": Variant(
        "64 forks, tiles dealt at random", "shared", Recipe((Step(FORK, 64),), rate=_RATE, router=ByChance)
    ),
    "heads": Variant("64 cluster heads (forks of the reader alone)", "shared", _forks(Step(4, 64))),
    "16": Variant("16 forks", WIDE, _forks(Step(FORK, 16))),
    "64": Variant("64 forks", WIDE, _forks(Step(FORK, 64))),
    "8 x 8": Variant("a tree of two steps, as many leaves", "64", _forks(Step(FORK, 8, 0.3), Step(FORK, 8))),
    "4 x 4 x 4": Variant(
        "a tree of three steps, as many leaves",
        "64",
        _forks(Step(FORK, 4, 0.2), Step(FORK, 4, 0.4), Step(FORK, 4)),
    ),
    "own heads": Variant("64 forks with heads of their own classes", "64", _forks(Step(FORK, 64), own_heads=True)),
}
ROUTED = "64"
"""The variant whose routing is measured in other ways."""
ONCE = ("shared", "random", "heads", "4 x 4 x 4", "own heads")
"""Variants of the first seed alone."""
FEW = (BASE, ON, "shared", "random", "heads", "16", "own heads", "8 x 8")
