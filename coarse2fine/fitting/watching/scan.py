"""Training of the scan that chooses an expert's tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.fitting.base import PRIOR_LOGIT
from coarse2fine.fitting.crops import turn_planes
from coarse2fine.fitting.geometry import BASES
from coarse2fine.fitting.optimise import train
from coarse2fine.fitting.watching.samples import TileSamples
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.pooled import PooledSpec, PooledStack, any_logit, pooled
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Tick
from coarse2fine.tiling.orientation import Turn

# The net of a closer scan at a finer plane: a field of 58 pixels.
_CLOSE = "4/2:16 3:24 4/2:48 3:64 3:64 4/2:128 3:128 1:128 1:1"
_WIDTHS = (2.0, 1.5, 1.0, 0.5)
_MOST_CHANNELS = 248
_BATCH_PIXELS, _BATCH = 250_000, (4, 32)
_GRAIN = 0.1


@dataclass(frozen=True)
class ScanPlan:
    """A net for tiles, and the plane that it scans.

    Parameters
    ----------
    spec : PooledSpec
    downsample : int
        Full-resolution pixels per pixel of the plane.
    """

    spec: PooledSpec
    downsample: int

    @property
    def tile_macs(self) -> int:
        """Multiply-adds for a tile of a large image."""
        return round(self.spec.macs_per_cell)


def plan_scan(tile: int, channels: int, downsample: float, most_macs: float, *, close: bool = False) -> ScanPlan:
    """The widest net within a cost, on the plane nearest to a wanted one that divides the tile.

    Parameters
    ----------
    tile : int
        Side of a tile in full-resolution pixels.
    channels : int
        Channels of the image.
    downsample : float
        Wanted full-resolution pixels per pixel of the plane; coarser planes are taken if no net is cheap enough.
    most_macs : float
        Most multiply-adds for a tile.
    close : bool
        Whether it is a closer scan, with a larger net.
    """
    plans = [
        ScanPlan(PooledSpec(_wide(text, channels, width), tile // d // stride), d)
        for d in _divisors(tile)
        for stride, text in _texts(close=close)
        if tile % (d * stride) == 0 and tile // (d * stride) >= 1
        for width in _WIDTHS
    ]
    fitting = [plan for plan in plans if plan.tile_macs <= most_macs] or [min(plans, key=lambda p: p.tile_macs)]

    def rank(plan: ScanPlan) -> tuple[float, int, int]:
        away = abs(math.log2(plan.downsample / downsample))
        return round(away, 3), -plan.spec.inner.stride, -plan.tile_macs

    return min(fitting, key=rank)


def _texts(*, close: bool) -> list[tuple[int, str]]:
    return [(8, _CLOSE)] if close else [(2**halvings, text) for halvings, text in BASES.items()]


def _divisors(tile: int) -> list[int]:
    return [d for d in range(1, min(tile, 64) + 1) if tile % d == 0]


def _wide(text: str, channels: int, width: float) -> StackSpec:
    spec = StackSpec.parse(channels, text)
    *stages, last = spec.stages
    return StackSpec(channels, (*(replace(s, channels=_channels(s.channels, width)) for s in stages), last))


def _channels(count: int, width: float) -> int:
    return min(max(4, round(count * width)), _MOST_CHANNELS)


def train_scan(
    plan: ScanPlan,
    samples: TileSamples,
    runtime: Runtime,
    *,
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    rotate: bool,
    steps: int,
    seed: int,
    tick: Tick | None = None,
) -> PooledStack:
    """Train a net to predict which tiles, and where in them, hold a find.

    Parameters
    ----------
    plan : ScanPlan
    samples : TileSamples
    runtime : Runtime
    mean, std : ndarray, float32, (channels,)
        Normalisation of pixels in 0..1.
    rotate : bool
        Whether finds stay finds when turned or mirrored.
    steps : int
    seed : int
    tick : callable, optional
        Called with steps done and steps in all.
    """
    torch.manual_seed(seed)
    net = ConvStack(plan.spec.inner, batch_norm=True)
    assert net.reader.bias is not None
    with torch.no_grad():
        net.reader.bias.fill_(PRIOR_LOGIT)
    make = _Batches(samples, mean, std, rotate=rotate)
    loss = _TileLoss(plan.spec.pool, located=samples.located)
    train(net, make, loss, runtime, steps=steps, seed=seed, tick=tick)
    whole = PooledStack(plan.spec)
    whole.inner.load_state_dict(net.folded().state_dict())
    return whole.eval()


class _Batches:
    """Batches of tiles, half of them with finds, turned and with varied light."""

    def __init__(
        self, samples: TileSamples, mean: NDArray[np.float32], std: NDArray[np.float32], *, rotate: bool
    ) -> None:
        self._samples, self._mean, self._std, self._rotate = samples, mean, std, rotate
        self._yes, self._no = np.flatnonzero(samples.positive), np.flatnonzero(~samples.positive)
        side = samples.pixels.shape[1]
        self._size = int(np.clip(_BATCH_PIXELS // side**2, *_BATCH))

    def __call__(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        half = self._size // 2 if len(self._yes) and len(self._no) else self._size
        rows = [rng.choice(kind, half) for kind in (self._yes, self._no) if len(kind)]
        made = [self._one(row, rng) for row in np.concatenate(rows).tolist()]
        x, y = (torch.from_numpy(np.stack(column)) for column in zip(*made, strict=True))
        return x, y

    def _one(self, row: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        flags = rng.random(3) < 0.5
        turn = Turn(*flags.tolist()) if self._rotate else Turn(False, False, False)
        planes = ((self._samples.pixels[row].astype(np.float32) / 255 - self._mean) / self._std).transpose(2, 0, 1)
        planes = turn_planes(planes.astype(np.float32), turn)
        channels = len(planes)
        tint = rng.normal(0, 0.1, (channels, 1, 1)) if channels > 1 else 0.0
        planes = planes * rng.uniform(0.8, 1.25) + rng.normal(0, 0.2) + tint
        planes = planes + rng.normal(0, rng.uniform(0, _GRAIN), planes.shape)
        return planes.astype(np.float32), turn_planes(self._samples.finds[row].astype(np.float32), turn)


class _TileLoss:
    """Binary cross-entropy of the small cells, per find, and of the tiles."""

    def __init__(self, pool: int, *, located: bool) -> None:
        self._pool, self._located = pool, located

    def __call__(self, out: Tensor, finds: Tensor) -> Tensor:
        entropy = torch.nn.functional.binary_cross_entropy_with_logits
        out = out.float()
        logit = any_logit(pooled(out, out, self._pool)[:, -1:])
        held = torch.nn.functional.max_pool2d(finds, self._pool)
        tiles = entropy(logit, held)
        if not self._located:
            return tiles
        return tiles + entropy(out, finds, reduction="sum") / finds.sum().clamp(min=1.0)
