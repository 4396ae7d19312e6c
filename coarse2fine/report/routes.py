"""The part of the tree of specialists that an analysis used, with examples of what each leaf read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coarse2fine.region import Region
from coarse2fine.report.pictures import around, crop
from coarse2fine.results.analysis import Analysis
from coarse2fine.results.routes import RouteNode, route_nodes
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image

# Examples of a leaf; only leaves with most finds have them. Pictures are at most so large.
_EXAMPLES, _SHOWN, _LEAST, _MOST = 6, 32, 32, 64
_LARGEST = 1e15


@dataclass(frozen=True)
class RouteRow:
    """A node, as a line of the page.

    Parameters
    ----------
    node : RouteNode
    classes : str
        The commonest classes of its finds.
    earned : str
        What it gains on held-out parts of the scenes of the fit, if that is known.
    pictures : list of str
        Data URIs of its finds with the highest scores.
    """

    node: RouteNode
    classes: str
    earned: str
    pictures: list[str]


def route_rows(analysis: Analysis, *, pictures: bool) -> list[RouteRow]:
    """Lines for all nodes that finds were routed through, each before those below it.

    Empty if there are several bands or experts, each with nodes of its own: a find does not say which is its.

    Parameters
    ----------
    analysis : Analysis
    pictures : bool
        Whether the image can be read.
    """
    if "bands" in _within(analysis.provenance, "model"):
        return []
    nodes = route_nodes(analysis.regions)
    fullest = sorted((node for node in nodes if node.ended), key=lambda node: -len(node.ended))[:_SHOWN]
    shown = {node.route for node in fullest}
    return [
        RouteRow(
            node,
            ", ".join(node.classes),
            earned(analysis, node.number),
            _pictures(analysis, node) if pictures and node.route in shown else [],
        )
        for node in nodes
    ]


def earned(analysis: Analysis, node: int) -> str:
    """What fitting says of a node; empty if it says nothing."""
    known = _within(_within(_within(analysis.provenance, "model"), "earned"), str(node))
    numbers = [known.get(key) for key in ("before", "after", "items")]
    if not all(isinstance(each, int | float) and 0 <= each < _LARGEST for each in numbers):
        return ""
    before, after, items = numbers
    form = ".1%" if known.get("measure") == "wrong" else ".3g"
    return f"{known.get('measure')} {before:{form}} \u2192 {after:{form}} of {items:,.0f} held out"


def _within(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of a record, perhaps from a stranger's file: empty if it is none."""
    found = record.get(key)
    return found if isinstance(found, dict) else {}


def _pictures(analysis: Analysis, node: RouteNode) -> list[str]:
    best = sorted(node.ended, key=lambda region: -region.score)[:_EXAMPLES]
    return [_picture(region, analysis.image) for region in best]


def _picture(region: Region, image: Image) -> str:
    y0, x0, y1, x1 = region.full_box
    box = Box(math.floor(y0), math.floor(x0), math.ceil(y1), math.ceil(x1))
    return crop(image, around(box, image, max(_LEAST, round(1.2 * max(box.height, box.width)))), _MOST)
