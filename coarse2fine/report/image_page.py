"""One HTML page about an analysis: it needs no network, and names in it are escaped."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from coarse2fine.audit.result import Audit
from coarse2fine.models.firing import NO_FEATURE, feature_name
from coarse2fine.region import Region
from coarse2fine.report.pictures import around, bgr, crop
from coarse2fine.report.routes import route_rows
from coarse2fine.report.templates import render_page
from coarse2fine.results.analysis import Analysis
from coarse2fine.results.colours import label_colours
from coarse2fine.results.overlays import data_uri, encoded, heat_pixels, to_overview
from coarse2fine.steps.plan import Plan
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.writing.atomic import replacing_stream

_SHAPES = 20_000
_TILES = 24
_TILE_SIDE = 192
_TRIED_TILES = 4096
_FEATURES = 8


@dataclass(frozen=True)
class Layer:
    """Shapes of one colour, as an SVG path in full-resolution pixels."""

    name: str
    count: int
    colour: str
    path: str


@dataclass(frozen=True)
class Example:
    """An example of an unnamed kind: its name with traits, its colour, and a picture as a data URI."""

    name: str
    colour: str
    box: Box
    full_box: tuple[float, float, float, float]
    picture: str


@dataclass(frozen=True)
class Tile:
    """A window at full resolution.

    Parameters
    ----------
    rank : int
        Rank in the plan, from 1.
    score : float
    box : Box
        The part of the image shown, in full-resolution pixels.
    window : Box
    picture : str
        A data URI.
    fired, route : tuple
        Names of the features that fired; numbers of the specialists used.
    layers : list of Layer
        The regions in it.
    """

    rank: int
    score: float
    box: Box
    window: Box
    picture: str
    fired: tuple[str, ...]
    route: tuple[int, ...]
    layers: list[Layer]


def write_report(analysis: Analysis, path: str | os.PathLike[str]) -> Path:
    """Write one self-contained HTML page about an analysis.

    It shows the image with interest, windows and regions as layers; the best windows at full resolution, with the
    features that fired and the route; the specialists that read finds; cost, failures and provenance. If the image
    cannot be read any more, the page says so and shows the rest. Equal analyses give equal pages.

    Parameters
    ----------
    analysis : Analysis
    path : path-like
        File to write; an existing one is replaced once the new one is complete.

    Returns
    -------
    Path
        The file written.
    """
    target = Path(path)
    failures = list(analysis.failures)
    picture, tiles, examples = None, [], []
    try:
        picture = _picture(analysis)
        tiles = _gallery(analysis)
        examples = _examples(analysis)
    except ImageError as error:
        failures.append(f"pictures are missing: {error}")
    page = render_page(
        "report.html.j2",
        analysis=analysis,
        image=analysis.image,
        cost=analysis.cost,
        picture=picture,
        layers=layers(analysis.regions, max(analysis.image.shape[:2]) / 400, css_colours(analysis.labels)),
        shown=min(len(analysis.regions), _SHAPES),
        windows=_rectangles(analysis.plan, analysis.cell, max(analysis.image.shape[:2]) / 400),
        tiles=tiles,
        examples=examples,
        routes=route_rows(analysis, pictures=picture is not None),
        # Features of an autoencoder have no meaning of their own.
        chosen=[] if analysis.kinds else list(analysis.chosen_by.items())[:_FEATURES],
        spending=_spending(analysis),
        recall=None if analysis.audit is None else recall_text(analysis.audit),
        failures=failures,
        facts=_facts(analysis),
    )
    with replacing_stream(target) as stream:
        stream.write(page.encode("utf-8", "replace"))
    return target


def layers(regions: Sequence[Region], least: float, colours: Mapping[str, str]) -> list[Layer]:
    """The best regions by class, the most frequent class first; those too small to be seen are drawn larger.

    Parameters
    ----------
    regions : sequence of Region
        The highest score first.
    least : float
        Smallest side of a shape, in full-resolution pixels.
    colours : mapping of str to str
        Of each class, in CSS notation.
    """
    paths: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for index, region in enumerate(regions):
        counts[region.label] = counts.get(region.label, 0) + 1
        if index < _SHAPES:
            paths.setdefault(region.label, []).append(_path(region, least))
    order = sorted(counts, key=lambda label: (-counts[label], label))
    return [Layer(label, counts[label], colours[label], "".join(paths.get(label, ()))) for label in order]


def css_colours(labels: Iterable[str]) -> dict[str, str]:
    """Colours of classes that are shown together, in CSS notation."""
    return {label: "#{:02x}{:02x}{:02x}".format(*colour) for label, colour in label_colours(labels).items()}


def recall_text(audit: Audit) -> str:
    """Bounds on recall in a few characters, rounded outwards."""
    if not audit.blocks:
        return "100 %"  # nothing was skipped
    low, high = audit.recall_interval
    least = math.floor(low * 100)
    if audit.target is not None:
        return f"at least {least} %"
    return f"{least} to {math.ceil(high * 100)} %" if audit.audited else "unknown"


def _path(region: Region, least: float) -> str:
    y0, x0, y1, x1 = region.full_box
    small = max(y1 - y0, x1 - x0) < least
    if small:
        y, x = region.full_centre
        y0, x0, y1, x1 = y - least / 2, x - least / 2, y + least / 2, x + least / 2
    if region.outline is None or small:
        return f"M{x0:.1f} {y0:.1f}H{x1:.1f}V{y1:.1f}H{x0:.1f}Z"
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in region.outline) + "Z"


def _rectangles(plan: Plan, cell: int, least: float) -> str:
    """The best windows as an SVG path."""
    sides = plan.sides[:_SHAPES] * cell
    shown = np.maximum(sides, least)
    low = plan.cell_corners[:_SHAPES] * cell + (sides - shown) / 2
    rows = zip(low.tolist(), shown.tolist(), strict=True)
    return "".join(f"M{x:.0f} {y:.0f}h{w:.0f}v{h:.0f}h-{w:.0f}Z" for (y, x), (h, w) in rows)


def _picture(analysis: Analysis) -> dict[str, Any]:
    """The overview, and the interest as an overlay."""
    pixels, downsample = analysis.overview
    heat = None
    if analysis.interest.size:
        values = to_overview(analysis.interest, analysis.cell, downsample, (pixels.shape[0], pixels.shape[1]))
        heat = data_uri(encoded(heat_pixels(values, float(analysis.interest.max())), ".png"), ".png")
    return {"base": data_uri(encoded(bgr(pixels), ".jpg"), ".jpg"), "heat": heat}


def _gallery(analysis: Analysis) -> list[Tile]:
    """The best windows, without those that an earlier tile shows."""
    image, plan = analysis.image, analysis.plan
    centres = np.array([region.full_centre for region in analysis.regions]).reshape(-1, 2)
    near = cKDTree(centres) if len(centres) else None
    tiles: list[Tile] = []
    colours = css_colours(analysis.labels)
    for rank in range(min(len(plan), _TRIED_TILES)):
        y, x = (plan.cell_corners[rank] * analysis.cell).tolist()
        height, width = (plan.sides[rank] * analysis.cell).tolist()
        window = Box(y, x, min(y + height, image.height), min(x + width, image.width))
        if any(_holds(tile.box, window) for tile in tiles):
            continue
        box = around(window, image, _TILE_SIDE)
        found = [] if near is None else near.query_ball_point(_centre(box), max(box.height, box.width) / 2, p=np.inf)
        regions = [analysis.regions[i] for i in sorted(found)]
        route = next((r.route for r in regions if _inside(r, window)), ())
        fired = () if analysis.kinds else _fired(plan, rank)
        shown = layers(regions, 0, colours)
        tiles.append(
            Tile(rank + 1, float(plan.scores[rank]), box, window, crop(image, box, 2 * _TILE_SIDE), fired, route, shown)
        )
        if len(tiles) == _TILES:
            break
    return tiles


def _examples(analysis: Analysis) -> list[Example]:
    """The best region of each unnamed kind."""
    found = []
    colours = css_colours(analysis.labels)
    for label, kind in analysis.kinds.items():
        y0, x0, y1, x1 = kind["example"]
        box = around(Box(int(y0), int(x0), math.ceil(y1), math.ceil(x1)), analysis.image, _TILE_SIDE)
        picture = crop(analysis.image, box, 2 * _TILE_SIDE)
        found.append(Example(analysis.named(label), colours[label], box, (y0, x0, y1, x1), picture))
    return found


def _fired(plan: Plan, rank: int) -> tuple[str, ...]:
    fired = () if plan.fired is None else plan.fired[rank].tolist()
    return tuple(feature_name(f) for f in fired if f != NO_FEATURE)


def _holds(box: Box, window: Box) -> bool:
    """Whether a box contains the centre of a window."""
    y, x = _centre(window)
    return box.y0 <= y < box.y1 and box.x0 <= x < box.x1


def _inside(region: Region, window: Box) -> bool:
    y, x = region.full_centre
    return window.y0 <= y < window.y1 and window.x0 <= x < window.x1


def _centre(box: Box) -> tuple[float, float]:
    return (box.y0 + box.y1) / 2, (box.x0 + box.x1) / 2


def _spending(analysis: Analysis) -> list[tuple[str, int, float]]:
    """Cost of each step: name, multiply-adds, and share of the bar."""
    cost = analysis.cost
    whole = max(cost.exhaustive_macs, cost.macs)
    steps = (
        ("scan", cost.scan_macs),
        ("refinement", cost.refine_macs),
        ("audit", cost.audit_macs),
        ("classes", cost.classify_macs),
    )
    return [(name, macs, macs / whole) for name, macs in steps if macs]


def _facts(analysis: Analysis) -> list[tuple[str, str]]:
    """Properties of the image and provenance, by name."""
    image = analysis.image
    facts = [
        ("image", image.location or "an array"),
        ("format", f"{image.format}, {len(image.levels)} level(s), {image.channels} channel(s)"),
        ("microns per pixel", "unknown" if image.mpp is None else f"{image.mpp[0]:g} x {image.mpp[1]:g} (y, x)"),
        *(("note", note) for note in image.notes),
        ("cell", f"{analysis.cell} px"),
    ]
    facts += [("note", note) for note in analysis.notes]
    for key, value in analysis.provenance.items():
        if key in ("notes", "kinds"):
            continue
        rows = value.items() if isinstance(value, dict) else [("", value)]
        facts += [(f"{key} {name}".strip(), str(item)) for name, item in rows if item is not None]
    return facts
