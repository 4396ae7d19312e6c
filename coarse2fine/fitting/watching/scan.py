"""Training of the scan that chooses an expert's tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.fitting.base import PRIOR_LOGIT
from coarse2fine.fitting.crops import turn_planes
from coarse2fine.fitting.geometry import BASES
from coarse2fine.fitting.optimise import train
from coarse2fine.fitting.watching.samples import TileSamples, places
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
# Natural logarithm of the largest factor by which a tile is shown larger or smaller.
_ZOOM = 0.22


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
    usual = [(2**halvings, text) for halvings, text in BASES.items()]
    return [(stride, _CLOSE if stride == 8 else text) for stride, text in usual] if close else usual


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
    make = _Batches(samples, plan.spec, mean, std, rotate=rotate)
    loss = _TileLoss(plan.spec.pool, located=samples.located)
    train(net, make, loss, runtime, steps=steps, seed=seed, tick=tick)
    whole = PooledStack(plan.spec)
    whole.inner.load_state_dict(net.folded().state_dict())
    return whole.eval()


class _Batches:
    """Batches of tiles, half of them with finds: turned, larger or smaller, shifted, and in varied light."""

    def __init__(
        self,
        samples: TileSamples,
        spec: PooledSpec,
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        *,
        rotate: bool,
    ) -> None:
        self._samples, self._spec, self._mean, self._std, self._rotate = samples, spec, mean, std, rotate
        self._yes, self._no = np.flatnonzero(samples.positive), np.flatnonzero(~samples.positive)
        self._size = int(np.clip(_BATCH_PIXELS // spec.input_size(1) ** 2, *_BATCH))

    def __call__(self, rng: np.random.Generator) -> tuple[Tensor, ...]:
        half = self._size // 2 if len(self._yes) and len(self._no) else self._size
        rows = [rng.choice(kind, half) for kind in (self._yes, self._no) if len(kind)]
        made = [self._one(row, rng) for row in np.concatenate(rows).tolist()]
        return tuple(torch.from_numpy(np.stack(column)) for column in zip(*made, strict=True))

    def _one(self, row: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], ...]:
        """Input (channels, side, side), and finds and validity of the small cells, (1, pool, pool)."""
        spec, whole = self._spec, self._samples.pixels[row]
        zoom = float(np.exp(rng.uniform(-_ZOOM, _ZOOM)))
        side = spec.input_size(1)
        # What is left of the sample's surplus at this zoom, at most one small cell.
        room = min(spec.inner.stride / 2, max(0.0, (len(whole) - side / zoom) / 2))
        shift = rng.uniform(-room, room, 2)
        pixels = _resampled(whole, side, zoom, shift)
        finds, valid = self._targets(self._samples.boxes[row], zoom, shift)
        turn = Turn.random(rng)
        turn = turn if self._rotate else Turn(False, False, False)
        normal = (pixels.astype(np.float32) / 255 - self._mean) / self._std
        planes = turn_planes(normal.astype(np.float32).transpose(2, 0, 1), turn).astype(np.float64)
        tint = rng.normal(0, 0.1, (len(planes), 1, 1)) if len(planes) > 1 else 0.0
        planes = planes * rng.uniform(0.8, 1.25) + rng.normal(0, 0.2) + tint
        planes = planes + rng.normal(0, rng.uniform(0, _GRAIN), planes.shape)
        return planes.astype(np.float32), turn_planes(finds[None], turn), turn_planes(valid[None], turn)

    def _targets(
        self, boxes: NDArray[np.float64], zoom: float, shift: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        spec = self._spec
        pool, stride = spec.pool, spec.inner.stride
        if not self._samples.located:
            return np.full((pool, pool), len(boxes) > 0, np.float32), np.ones((pool, pool), np.float32)
        finds = places((boxes - np.tile(shift, 2)) * zoom, stride, pool)
        # Nothing is known of what lies beyond the tile.
        centres = ((np.arange(pool) + 0.5 - pool / 2) * stride)[None] / zoom + shift[:, None]
        known = np.abs(centres) < spec.stride / 2
        return finds.astype(np.float32), (known[0][:, None] & known[1][None]).astype(np.float32)


def _resampled(whole: NDArray[np.uint8], side: int, zoom: float, shift: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The middle of a sample, enlarged by `zoom`, `shift` (y, x) pixels away; (side, side, channels)."""
    offset = (len(whole) - 1) / 2 + shift - (side - 1) / 2 / zoom
    matrix = np.array([[1 / zoom, 0, offset[1]], [0, 1 / zoom, offset[0]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    found = cv2.warpAffine(whole, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, np.uint8).reshape(side, side, -1)


class _TileLoss:
    """Binary cross-entropy of the small cells, per find, and of the tiles."""

    def __init__(self, pool: int, *, located: bool) -> None:
        self._pool, self._located = pool, located

    def __call__(self, out: Tensor, finds: Tensor, valid: Tensor) -> Tensor:
        entropy = torch.nn.functional.binary_cross_entropy_with_logits
        out = out.float()
        # Cells of which nothing is known hold nothing in this sum.
        logit = any_logit(pooled(out, torch.where(valid > 0, out, -30.0), self._pool)[:, -1:])
        tiles = entropy(logit, torch.nn.functional.max_pool2d(finds, self._pool))
        if not self._located:
            return tiles
        cells = entropy(out, finds, reduction="none") * valid
        return tiles + cells.sum() / (finds * valid).sum().clamp(min=1.0)
