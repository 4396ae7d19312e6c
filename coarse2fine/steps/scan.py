"""Scan: the base, after cheaper cascade stages if there are any, on the image at low resolution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.model import CascadeStage, Model
from coarse2fine.models.feature_groups import Groups
from coarse2fine.models.firing import FIRED, NO_FEATURE
from coarse2fine.models.runtime import Runtime
from coarse2fine.models.threads import ThreadPool
from coarse2fine.preprocess import fill_value
from coarse2fine.progress import Tick
from coarse2fine.refiners.protocol import Refiner
from coarse2fine.steps.cell_maps import Releasing, any_of, new_map, write_blocks
from coarse2fine.steps.choose import choose
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.scan_blocks import scan_blocks
from coarse2fine.steps.scan_net import ScanNet, plain_net, scan_net
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.window_reader import WindowBatch, WindowReader
from coarse2fine.tiling.window_table import Windows

_BATCH_PIXELS = 600_000
# Sides of merged squares in a plan for the next cascade stage, in cells of the stage before it.
_SQUARES = (2, 4, 8, 16, 32)
# Reading a square and entering its answer takes as long as so many multiply-adds.
_SQUARE_MACS = 250_000
# Naming the features that fired takes a third of the net's time, and only the best cell of each window needs it. Cells
# below both the prior and this share of tau are never the best of a window.
_NAMED_FROM = 1 / 8
# Cells of a page of memory.
_PAGE = 1024
SCANNED = np.uint16(1 << 15)
"""Bit of the map of groups that marks the cells that the base scanned."""


@dataclass(frozen=True)
class Scan:
    """Result of a scan.

    Parameters
    ----------
    interest : ndarray, float32, (cell height, cell width)
        Probability that refining the cell finds something.
    fired : ndarray, uint8, (cell height, cell width, 3)
        High-level features that fired, strongest first; 255 for none, and in cells of very low interest. Or without
        features, (cell height, cell width, 0).
    macs : int
        Multiply-adds spent, halos included.
    failures : tuple of str
        Why parts could not be read; they were filled with grey, or left out if the whole block was unreadable.
    groups : ndarray, uint16, (cell height, cell width), optional
        Groups of features that fire, see `group_bits`; 0 in cells that the base did not scan. None if the scan chooses
        no specialists.
    leaves : ndarray, int32, (cell height, cell width), optional
        Leaf by which each cell is routed, for refiners that route; 0 where the base did not look.
    """

    interest: NDArray[np.float32]
    fired: NDArray[np.uint8]
    macs: int
    failures: tuple[str, ...] = ()
    groups: NDArray[np.uint16] | None = None
    leaves: NDArray[np.int32] | None = None

    @classmethod
    def none(cls) -> Scan:
        """No scan: maps of no cells."""
        return cls.empty((0, 0))

    @classmethod
    def empty(
        cls, cell_shape: tuple[int, int], *, named: bool = True, grouped: bool = False, routed: bool = False
    ) -> Scan:
        """Maps of an image before the first block: no interest, no features; also of groups and of leaves if asked."""
        groups = np.zeros(cell_shape, np.uint16) if grouped else None
        leaves = np.zeros(cell_shape, np.int32) if routed else None
        fired = new_map((*cell_shape, FIRED), np.uint8, NO_FEATURE) if named else np.empty((*cell_shape, 0), np.uint8)
        return cls(new_map(cell_shape, np.float32), fired, 0, groups=groups, leaves=leaves)

    def enter(
        self,
        cell_corners: NDArray[np.int64],
        high: Tensor,
        logit: Tensor,
        level: CascadeStage,
        refiner: Refiner,
        groups: Groups | None = None,
    ) -> None:
        """Write the answers for blocks of one shape into the maps; cells beyond the maps are left out.

        Parameters
        ----------
        cell_corners : ndarray, int64, (n, 2)
        high : Tensor, float, (n, c, h, w)
        logit : Tensor, float, (n, 1, h, w)
        level : CascadeStage
        refiner : Refiner
            Routes the cells, if the maps have leaves.
        groups : Groups, optional
            Groups of features that choose specialists.
        """
        firing = level.firing
        assert firing is not None
        probability = firing.probability(high, logit)
        write_blocks(self.interest, cell_corners, probability.cpu().numpy())
        if self.leaves is not None:
            vectors = high.float().movedim(1, -1).cpu().numpy()
            leaves = refiner.leaves(vectors.reshape(-1, vectors.shape[-1])).reshape(vectors.shape[:-1])
            write_blocks(self.leaves, cell_corners, leaves)
        if self.fired.size:
            self._name(cell_corners, high, probability, level)
        if self.groups is not None and groups is not None:
            write_blocks(self.groups, cell_corners, group_bits(groups, high))

    def _name(self, cell_corners: NDArray[np.int64], high: Tensor, probability: Tensor, level: CascadeStage) -> None:
        """Enter the features that fired."""
        firing = level.firing
        assert firing is not None
        height, width = self.interest.shape
        n, y, x = torch.nonzero(probability > min(firing.prior, _NAMED_FROM * level.tau), as_tuple=True)
        names = firing.strongest(high[n, :, y, x], FIRED).numpy()
        rows, columns = (cell_corners[n.cpu().numpy()] + torch.stack([y, x], dim=1).cpu().numpy()).T
        inside = (rows < height) & (columns < width)
        self.fired[rows[inside], columns[inside], : names.shape[1]] = names[inside]


def group_bits(groups: Groups, high: Tensor) -> NDArray[np.uint16]:
    """The groups that fire in each cell as the bits of a number, with `SCANNED`.

    Parameters
    ----------
    groups : Groups
    high : Tensor, float, (n, c, h, w)
    """
    fires = groups.fires(high).cpu().numpy()
    powers = (1 << np.arange(fires.shape[1], dtype=np.uint16))[:, None, None]
    return np.asarray((fires * powers).sum(axis=1, dtype=np.uint16) | SCANNED)


def look(
    image: Image,
    model: Model,
    runtime: Runtime,
    tick: Tick | None = None,
    *,
    inside: NDArray[np.bool_] | None = None,
    closer_macs: int = 0,
) -> Scan:
    """Scan an image with a fitted model, cascade stage by cascade stage.

    Parameters
    ----------
    image : Image
    model : Model
        With firing rules; see `coarse2fine.steps.novelty` for models without.
    runtime : Runtime
    tick : callable, optional
        Called with blocks done and blocks in all, for each stage.
    inside : ndarray, bool, (cell height, cell width), optional
        Cells to analyse: blocks without any are not scanned, and no other cells are passed on to the next stage.
    closer_macs : int
        Multiply-adds that later stages may take together even if thresholds ask for less.
    """
    first = model.levels[0]
    net = scan_net(first, model, runtime, image)
    only = len(model.levels) == 1
    seen = survey_level(image, model, runtime, first, tick, inside=inside, net=net, named=only)
    for level, closer in pairwise(model.levels):
        interest = seen.interest
        if inside is not None:
            ratio = level.cell // model.geometry.cell
            interest = interest * any_of(inside, ratio, ratio)
        plan = zoom_plan(interest, level, closer, closer_macs // (len(model.levels) - 1))
        seen = _look_closer(image, model, runtime, closer, plan, seen, tick)
    return seen


def survey_level(
    image: Image,
    model: Model,
    runtime: Runtime,
    level: CascadeStage,
    tick: Tick | None = None,
    *,
    inside: NDArray[np.bool_] | None = None,
    net: ScanNet | None = None,
    named: bool = False,
) -> Scan:
    """Scan the whole image with one cascade stage.

    Parameters
    ----------
    image : Image
    model : Model
    runtime : Runtime
    level : CascadeStage
    tick, inside
        As of `look`.
    net : callable, optional
        By default the stage's net in the number format of the runtime.
    named : bool
        Whether to name the features that fired.
    """
    groups, scan = _groups_at(model, level), _empty(image, model, level, named=named)
    releasing, macs = Releasing(scan.interest, scan.fired), 0
    failures: list[str] = []
    blocks_seen = features(image, model, runtime, tick, failures, level=level, inside=inside, net=net)
    for cell_box, high, logit, cost in blocks_seen:
        scan.enter(np.array([[cell_box.y0, cell_box.x0]]), high[None], logit[None], level, model.refiner, groups)
        macs += cost
        releasing.after(cell_box.area)
    return replace(scan, macs=macs, failures=tuple(failures))


def _groups_at(model: Model, level: CascadeStage) -> Groups | None:
    """Groups of the stage's features that choose specialists: those of the base."""
    chosen = model.scan_groups
    return None if chosen is None or level.net is not model.base else chosen.groups


def _empty(image: Image, model: Model, level: CascadeStage, *, named: bool) -> Scan:
    """Maps of a stage before the first block; the base's have groups and leaves if the model needs them."""
    return Scan.empty(
        level.cell_shape(image.shape[:2]),
        named=named,
        grouped=_groups_at(model, level) is not None,
        routed=model.refiner.routed and level.net is model.base,
    )


def zoom_plan(interest: NDArray[np.float32], level: CascadeStage, closer: CascadeStage, spare: int = 0) -> Plan:
    """Squares that the next cascade stage has to scan, in its cells.

    Parameters
    ----------
    interest : ndarray, float32, (cell height, cell width)
    level, closer : CascadeStage
        The stage that made the interest, and the next one.
    spare : int
        Multiply-adds that squares may take even if fewer are above the threshold of `level`.
    """
    ratio, spec = level.cell // closer.cell, closer.net.spec

    def price(height: int, width: int) -> int:
        return spec.macs(height * ratio, width * ratio) + _SQUARE_MACS

    plan = choose(interest, 1, window_macs=price, tau=level.tau, merged=_SQUARES)
    if plan.macs(price) < spare:
        wider = choose(interest, 1, window_macs=price, merged=_SQUARES)
        if wider.macs(price) > spare:
            wider = choose(interest, 1, window_macs=price, budget_macs=spare, merged=_SQUARES)
        plan = plan if (plan.covered() & ~wider.covered()).any() else wider
    shape = (interest.shape[0] * ratio, interest.shape[1] * ratio)
    return Plan(plan.cell_corners * ratio, plan.sides * ratio, plan.scores, shape)


def _look_closer(
    image: Image, model: Model, runtime: Runtime, level: CascadeStage, plan: Plan, before: Scan, tick: Tick | None
) -> Scan:
    """Scan the squares of a plan alone; interest is 0 elsewhere."""
    net, spec = scan_net(level, model, runtime, image), level.net.spec
    groups, macs, done = _groups_at(model, level), before.macs, 0
    scan = _empty(image, model, level, named=level.net is model.base)
    releasing = Releasing(scan.interest, scan.fired)
    with WindowReader(image, downsample=level.downsample, fill=fill_value(model)) as reader:
        for (height, width), rows in plan.by_shape():
            corners = plan.cell_corners[rows]
            windows = Windows.of_cells(corners, (height, width), spec.stride, spec.margin)

            def answer(batch: WindowBatch, corners: NDArray[np.int64] = corners) -> int:
                batch.pixels[batch.failed] = fill_value(model)
                scan.enter(corners[batch.index], *net(batch.pixels), level, model.refiner, groups)
                return len(batch.index)

            size = max(1, _BATCH_PIXELS // windows.area)
            pool = ThreadPool.for_batches(runtime.device, ceil_div(len(windows), size))
            for count in pool.in_order(answer, reader.batches(windows, size)):
                macs += count * spec.macs(height, width)
                done += count
                # A small square touches a page of memory in each of its rows.
                releasing.after(count * height * _PAGE)
                if tick:
                    tick(done, len(plan))
        failures = tuple(dict.fromkeys((*before.failures, *reader.failures)))
    return replace(scan, macs=macs, failures=failures)


def features(
    image: Image,
    model: Model,
    runtime: Runtime,
    tick: Tick | None = None,
    failures: list[str] | None = None,
    *,
    level: CascadeStage | None = None,
    inside: NDArray[np.bool_] | None = None,
    net: ScanNet | None = None,
    aside: bool = True,
) -> Iterator[tuple[Box, Tensor, Tensor, int]]:
    """High-level activations and answers of the base, or of another cascade stage, block by block.

    Parameters
    ----------
    image, model, runtime, tick
        As of `survey_level`.
    failures : list of str, optional
        Takes the reasons why parts could not be read; they are grey, and blocks without any readable part left out.
    level : CascadeStage, optional
        By default the base's.
    inside : ndarray, bool, (cell height, cell width), optional
        See `look`.
    net : callable, optional
        As of `survey_level`.
    aside : bool
        Whether several blocks may be answered at once: not by a net with a state.

    Yields
    ------
    cell_box : Box
        The block, in cells, clipped to the image.
    high : Tensor, float, (c, h, w)
    logit : Tensor, float, (channels of the last stage, h, w)
    macs : int
        Multiply-adds of the block, halo included.

    Raises
    ------
    ImageError
        If no block can be read.
    """
    level = level or model.levels[-1]
    spec, net = level.net.spec, net or plain_net(level, model, runtime)
    (height, width), grid = scan_blocks(model, level, image.shape[:2], inside)
    # All blocks have one shape; beyond the image the reader repeats the edge, which is cropped from the answer.
    boxes = [Box(b.y0, b.x0, b.y0 + height, b.x0 + width).scale(spec.stride).expand(spec.margin) for b in grid]
    cost = spec.macs(height, width)
    seen = False

    def answer(batch: WindowBatch) -> tuple[Box, Tensor, Tensor, int] | None:
        if batch.failed[0]:
            return None
        box = grid[int(batch.index[0])]
        high, logit = net(batch.pixels)
        return box, high[0, :, : box.height, : box.width], logit[0, :, : box.height, : box.width], cost

    with WindowReader(image, downsample=level.downsample, fill=fill_value(model)) as reader:
        threads = ThreadPool.for_batches(runtime.device, len(boxes) if aside else 1)
        answers = threads.in_order(answer, reader.batches(boxes, 1))
        for done, answered in enumerate(answers):
            if tick:
                tick(done + 1, len(grid))
            if answered is not None:
                seen = True
                yield answered
        if not seen:
            raise ImageError(f"no part of {image.name} can be read: {reader.failures[0]}")
        if failures is not None:
            failures.extend(reader.failures)
