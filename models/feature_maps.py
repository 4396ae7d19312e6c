"""Geometry of a base's feature maps, and of the column stages that read them.

All lengths are input pixels of the base. A map's halo is how far it extends beyond a block of cells on every side;
centres may lie between pixels, so halos may be half-integers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from .base import Base

_MOST = 4096
# Factor on a column's channels from one stage to the next.
_GROWTH = 2.0


@dataclass(frozen=True, slots=True)
class Twin:
    """A map of the base that a column may read: the input or the activations of one stage.

    Parameters
    ----------
    channels : int
    jump : int
        Input pixels from one position to the next.
    halo : float
        Input pixels by which the map extends beyond the block's cells, on every side.
    """

    channels: int
    jump: int
    halo: float


@dataclass(frozen=True)
class FeatureMaps:
    """All maps of a base, its input first and its high-level map last.

    Parameters
    ----------
    stride, align : int
        Stride and alignment of the base's cells, see `BaseSpec`.
    maps : tuple of Twin
    """

    stride: int
    align: int
    maps: tuple[Twin, ...]

    @classmethod
    def of(cls, base: Base) -> Self:
        """Derive the geometry of a base's maps from their shapes, without computing them.

        Parameters
        ----------
        base : Base

        Raises
        ------
        ValueError
            If a stage's positions are not a whole number of input pixels apart.
        """
        spec = base.spec
        net = copy.deepcopy(base).to("meta").eval()
        small, large = ([*_shapes(net, n * spec.align)] for n in (4, 8))
        maps = []
        for (channels, few), (_, many) in zip(small, large, strict=True):
            jump, rest = divmod(4 * spec.align * spec.stride, max(1, many - few))
            if rest:
                raise ValueError(f"expected a stage's positions to be whole input pixels apart, got {small}, {large}")
            maps.append(Twin(channels, jump, (few * jump - 4 * spec.align * spec.stride) / 2))
        return cls(spec.stride, spec.align, tuple(maps))


def _shapes(net: Base, cells: int) -> list[tuple[int, int]]:
    """Channels and side of the input and of each stage's map, for a square block of cells."""
    side = net.spec.input_size(cells)
    x = torch.empty(1, net.spec.in_channels, side, side, device="meta")
    with torch.no_grad():
        return [(m.shape[1], m.shape[2]) for m in (x, *net.features(x))]


@dataclass(frozen=True, slots=True)
class ColumnStage:
    """One stage of a column: side of its convolution's kernel, and channels; its stride follows from its twin."""

    kernel: int
    channels: int


@dataclass(frozen=True)
class ColumnSpec:
    """The shape of a `Column`.

    Parameters
    ----------
    stages : tuple of ColumnStage
        The twin of the last stage is the base's high-level map, that of the one before it the map before, and so on. A
        column without stages is a head: a linear reader of the high-level map.
    first : int
        Number of the base's stage that is the first stage's twin, from 1; the first stage's input is the base's map
        before that (0 is the image).

    Raises
    ------
    ValueError
        If there is no stage, or the first has no twin.
    """

    stages: tuple[ColumnStage, ...]
    first: int = 1

    def __post_init__(self) -> None:
        if self.first < 1 or (not self.stages and self.first == 1):
            raise ValueError(f"a column needs stages, the first on the grid of stage 1 or a later one; got {self}")
        if not all(0 < n <= _MOST for s in self.stages for n in (s.kernel, s.channels)):
            raise ValueError(f"expected kernels and channels from 1 to {_MOST}, got {str(self)!r:.100}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Build from text such as ``"4:2 4:4 3:8"`` (kernel:channels), or ``"@2 4:4 3:8"`` to start at stage 2."""
        words = text.split()
        first = int(words.pop(0)[1:]) if text.startswith("@") else 1
        return cls(tuple(ColumnStage(*(int(n) for n in word.split(":"))) for word in words), first)

    @classmethod
    def head(cls, twins: FeatureMaps) -> Self:
        """The cheapest specialist, without stages of its own."""
        return cls((), len(twins.maps))

    @classmethod
    def design(cls, twins: FeatureMaps, top: int, *, first: int = 1) -> Self:
        """A column whose widths grow from stage to stage, with kernels that need no larger halo than the base.

        Parameters
        ----------
        twins : FeatureMaps
            Maps of the base.
        top : int
            Channels of the last stage.
        first : int
            See `ColumnSpec`.
        """
        stages = []
        for n in range(first, len(twins.maps)):
            source, own = twins.maps[n - 1], twins.maps[n]
            stride = own.jump // source.jump or 1
            # As large as the halos allow, which is a built-in base's own kernel; larger than 2 x stride gains little.
            room = stride + round(2 * (source.halo - own.halo) / source.jump) if own.jump >= source.jump else 1
            most = max(3, 2 * stride)
            kernel = room if room <= most else most - (most - room) % 2
            stages.append(ColumnStage(kernel, max(1, round(top * _GROWTH ** (n + 1 - len(twins.maps))))))
        return cls(tuple(stages), first)

    def narrowed(self, share: float) -> ColumnSpec:
        """A copy with a share of the channels, at least one: for columns one step down the tree."""
        stages = (ColumnStage(s.kernel, max(1, round(s.channels * share))) for s in self.stages)
        return ColumnSpec(tuple(stages), self.first)

    def __str__(self) -> str:
        words = [f"{s.kernel}:{s.channels}" for s in self.stages]
        return " ".join(words if self.first == 1 else [f"@{self.first}", *words])


@dataclass(frozen=True, slots=True)
class Step:
    """Resampling from the map before a column's stage to the stage's grid.

    Parameters
    ----------
    enlarge : int
        Number of times that each position is repeated along each side; above 1 if the twin is finer than the map.
    crop : int
        Positions cut off on every side after that.
    stride : int
        Stride of the convolution.
    """

    enlarge: int
    crop: int
    stride: int

    def framed(self, plane: Tensor) -> Tensor:
        """The map before the stage, enlarged and cropped for its convolution."""
        if self.enlarge > 1:
            plane = plane.repeat_interleave(self.enlarge, dim=-1).repeat_interleave(self.enlarge, dim=-2)
        return cropped(plane, self.crop)


@dataclass(frozen=True)
class ColumnInputs:
    """Parts of a base's maps that a column reads; a cell's inputs do not depend on where its block begins.

    Parameters
    ----------
    spec : ColumnSpec
    twins : FeatureMaps
    border : int
        Cells that the base's block must have around the answered cells, on every side; a multiple of its `align`.
    halos : tuple of float
        Halo of each map that is read, around the answered cells: the map before the first stage, then the twin of each
        stage.
    steps : tuple of Step
        One for each stage.
    """

    spec: ColumnSpec
    twins: FeatureMaps
    border: int
    halos: tuple[float, ...]
    steps: tuple[Step, ...]

    @classmethod
    def of(cls, spec: ColumnSpec, twins: FeatureMaps) -> Self:
        """Fit a column onto the maps of a base.

        Raises
        ------
        ValueError
            If the column does not have one stage for each twin, or a kernel is not centred on its twin's positions.
        """
        maps = twins.maps[spec.first - 1 :]
        if len(maps) != len(spec.stages) + 1:
            raise ValueError(
                f"a column must end at the base's stage {len(twins.maps) - 1}: "
                f"expected {len(maps) - 1} stages from stage {spec.first} on, got '{spec}'"
            )
        if twins.maps[-1].jump != twins.stride or twins.maps[-1].halo % twins.stride:
            raise ValueError(f"expected a high-level map with one position a cell, got {twins.maps[-1]}")
        halos: list[float] = [0.0]
        steps: list[Step] = []
        for n in range(len(spec.stages), 0, -1):
            step, halo = _step(maps[n - 1], maps[n], spec.stages[n - 1].kernel, halos[0])
            if halo is None:
                raise ValueError(
                    f"the kernel of {spec.stages[n - 1].kernel} in stage {n} of the column '{spec}' is not centred "
                    "on its twin's positions; make it larger or smaller by one"
                )
            halos.insert(0, halo)
            steps.insert(0, step)
        lacking = max(halo - twin.halo for halo, twin in zip(halos, maps, strict=True))
        border = twins.align * max(0, -int(-lacking // (twins.stride * twins.align)))
        return cls(spec, twins, border, tuple(halos), tuple(steps))

    @property
    def maps(self) -> tuple[Twin, ...]:
        """The base's maps that are read: the one before the first stage, then the twin of each stage."""
        return self.twins.maps[self.spec.first - 1 :]

    @property
    def crops(self) -> tuple[int, ...]:
        """Positions of each map that are not read, on every side."""
        reach = self.border * self.twins.stride
        return tuple(round((t.halo + reach - h) / t.jump) for t, h in zip(self.maps, self.halos, strict=True))

    def sides(self, cells: int) -> tuple[int, ...]:
        """Positions along a side of each map that is read, for `cells` answered cells, a multiple of `align`."""
        length = cells * self.twins.stride
        return tuple(round((length + 2 * h) / t.jump) for t, h in zip(self.maps, self.halos, strict=True))

    def read(self, x: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Inputs of a column for all cells of a block but those of the border.

        Parameters
        ----------
        x : Tensor, float, (n, c, h, w)
            The base's input.
        features : sequence of Tensor
            The base's `features` of it.
        """
        maps = [x, *features][self.spec.first - 1 :]
        return [cropped(m, crop) for m, crop in zip(maps, self.crops, strict=True)]

    def items(
        self, maps: Sequence[Tensor], sides: tuple[int, int], places: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Items as blocks of cells, without copying.

        Parameters
        ----------
        maps : sequence of Tensor, float, (n, c, h, w)
            Maps from `read`.
        sides : tuple of int
            Height and width of each item in cells, multiples of `align`.
        places : tuple of Tensor, int64, (m,)
            Row in the batch, and first answered cell (y, x), of each item.

        Returns
        -------
        sources : list of Tensor, (r, c, h, w)
            For each map, a view with an item at every element.
        rows : list of Tensor, int64, (m,)
            For each map, the elements at which the items begin.
        """
        images, tops, lefts = places
        stride = self.twins.stride
        sources, rows = [], []
        for m, twin, height, width in zip(maps, self.maps, self.sides(sides[0]), self.sides(sides[1]), strict=True):
            n, c, y, x = m.stride()
            count = 1 + (m.shape[0] - 1) * n + (m.shape[2] - height) * y + (m.shape[3] - width) * x
            sources.append(m.as_strided((count, m.shape[1], height, width), (1, c, y, x), m.storage_offset()))
            rows.append(images * n + (tops * stride // twin.jump) * y + (lefts * stride // twin.jump) * x)
        return sources, rows

    def inner(self, answer: Tensor) -> Tensor:
        """The base's answer without the border's cells."""
        return cropped(answer, self.border)


def cropped(plane: Tensor, border: int) -> Tensor:
    """Crop `border` positions on every side of a map."""
    return plane[..., border : plane.shape[-2] - border, border : plane.shape[-1] - border]


def cell_rows(planes: Tensor) -> Tensor:
    """Planes (n, d, h, w) as a row for each cell, (n * h * w, d)."""
    return planes.permute(0, 2, 3, 1).reshape(-1, planes.shape[1])


def _step(source: Twin, own: Twin, kernel: int, halo: float) -> tuple[Step, float | None]:
    """Resampling of a stage, and the halo it needs of the map before; None if its kernel is not centred."""
    enlarge, stride = max(1, source.jump // own.jump), max(1, own.jump // source.jump)
    jump = source.jump // enlarge
    needed = halo + jump * (kernel - stride) / 2
    # Rounded up to whole positions of the source's grid, which is anchored at the edge of its halo.
    held = source.halo - source.jump * ((source.halo - needed) // source.jump)
    crop = (held - needed) / jump
    centred = crop % 1 == 0 and jump * stride == own.jump
    return Step(enlarge, int(crop), stride), held if centred else None
