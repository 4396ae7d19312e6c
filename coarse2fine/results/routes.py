"""Finds by the specialists that read them: the part of the tree of specialists that an analysis used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from coarse2fine.region import Region
from coarse2fine.specialists.naming import commonest


@dataclass(frozen=True)
class RouteNode:
    """A node of the tree of specialists, and the finds that passed it.

    Parameters
    ----------
    route : tuple of int
        Numbers of the nodes from the root to it, as in `Region.route`.
    passed : tuple of Region
        In the order of the analysis.
    ended : tuple of Region
        Those whose route ends here.
    """

    route: tuple[int, ...]
    passed: tuple[Region, ...]
    ended: tuple[Region, ...]

    @property
    def number(self) -> int:
        """Its own number."""
        return self.route[-1]

    @property
    def classes(self) -> list[str]:
        """The commonest classes of its finds, see `commonest`."""
        return commonest(Counter(region.label for region in self.passed))


def route_nodes(regions: Sequence[Region]) -> list[RouteNode]:
    """Nodes that finds were routed through, each before the nodes below it; empty if nothing was routed."""
    passed: dict[tuple[int, ...], list[Region]] = {}
    for region in regions:
        for depth in range(1, len(region.route) + 1):
            passed.setdefault(region.route[:depth], []).append(region)
    return [
        RouteNode(route, tuple(own), tuple(each for each in own if each.route == route))
        for route, own in sorted(passed.items())
    ]
