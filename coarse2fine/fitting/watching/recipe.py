"""Settings of a fit by watching, and the trial of its experts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from coarse2fine.experts.check import check_expert
from coarse2fine.experts.errors import ExpertError
from coarse2fine.experts.expert import Expert
from coarse2fine.experts.routes import check_alike
from coarse2fine.fitting.watching.watch import WatchLimit
from coarse2fine.progress import Tick
from coarse2fine.tiling.image import Image

WatchedExperts = Expert | Sequence[Expert] | Mapping[str, Expert | Sequence[Expert]]
"""Experts of a fit: one, or one with its alternatives, or these for each output by its name."""


@dataclass(frozen=True)
class WatchRecipe:
    """Settings of a fit by watching.

    Parameters
    ----------
    experts : tuple of Expert
        The expert, and its alternatives.
    watch : WatchLimit
    recall : float
        Recall of the expert's exhaustive finds for which the default threshold is set.
    steps : int
        Optimisation steps of a scan.
    rotate : bool
        Whether finds stay finds when turned or mirrored.
    seed : int
    name : str
    cache : path, optional
        Folder in which the expert's answers are stored.
    output : str
        Name of what the expert finds, if there may be several outputs.
    """

    experts: tuple[Expert, ...]
    watch: WatchLimit
    recall: float
    steps: int
    rotate: bool
    seed: int
    name: str
    cache: str | os.PathLike[str] | None = None
    output: str = ""

    def on(self, images: Sequence[Image]) -> Self:
        """The recipe with experts that read the images at the pixel size that they expect.

        Raises
        ------
        ExpertError
            If an image's pixel size is unknown or does not suit, or images need different planes.
        """
        return replace(self, experts=tuple(_on_all(each, images) for each in self.experts))

    @classmethod
    def each(cls, given: WatchedExperts, watch: float | str, *others: Any) -> list[Self]:
        """One for each output, from the parameters of `fit`: experts, a share or a time, and the other fields in order.

        Raises
        ------
        ValueError
            If something else than experts is given.
        """
        limit = WatchLimit.parse(watch)
        if not isinstance(given, Mapping):
            return [cls(_experts(given), limit, *others)]
        recipes = [replace(cls(_experts(each), limit, *others), output=name) for name, each in given.items()]
        if not recipes:
            raise ValueError("expected at least one output with an expert, got none")
        return recipes


def _experts(given: Expert | Sequence[Expert]) -> tuple[Expert, ...]:
    """An expert and its alternatives."""
    experts = (given,) if isinstance(given, Expert) else tuple(given)
    if not experts or not all(isinstance(each, Expert) for each in experts):
        raise ValueError(f"expected an expert, or several, made by coarse2fine.expert; got {given!r:.100}")
    return experts


def _on_all(expert: Expert, images: Sequence[Image]) -> Expert:
    found = [expert.on(image) for image in images]
    factors = [each.downsample for each in found]
    if len(set(factors)) > 1:
        first, other = (images[factors.index(factor)] for factor in sorted(set(factors))[:2])
        raise ExpertError(
            f"the images to fit on have different pixel sizes, such as {first} and {other}: give images of one size; "
            "those of others can be analysed afterwards"
        )
    return found[0]


def tried_experts(experts: Sequence[Expert], images: Sequence[Image], tick: Tick) -> tuple[tuple[Expert, ...], float]:
    """Try each expert on tiles of the largest image, and warn of what is wrong with them.

    Parameters
    ----------
    experts : sequence of Expert
        The first one, and its alternatives.
    images : sequence of Image
    tick : callable
        Called with experts tried and experts in all.

    Returns
    -------
    tuple of Expert
        With their multiply-adds for a tile.
    float
        Seconds that a tile takes with all of them.

    Raises
    ------
    ExpertError
        If one cannot run, or they do not share grid and labels.
    """
    expert, *others = experts
    check_alike(expert, others)
    largest = max(images, key=lambda image: image.height * image.width)
    found, seconds = [], 0.0
    for done, each in enumerate(experts, 1):
        checked = check_expert(each, largest)
        for line in str(checked).splitlines():
            if line.startswith("WARNING: "):
                warnings.warn(line.removeprefix("WARNING: "), stacklevel=4)
        found.append(replace(checked.expert, batch=each.batch))
        seconds += checked.seconds
        tick(done, len(experts))
    if len({each.estimated for each in found}) > 1:
        warnings.warn(
            "the multiply-adds of some experts are counted, those of others estimated from time, so their costs "
            "compare badly: give tile_macs= for each",
            stacklevel=4,
        )
    return tuple(found), seconds
