"""Nets of the specialists benchmark, trained end to end."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks.specialists.data import HELD, TRAIN, TileSet
from coarse2fine.models.conv_stack import ConvStack, StackSpec

_WIDTHS = (4, 8, 16, 32)
TOP = _WIDTHS[-1]
_BATCH, _RATE, _DECAY = 128, 3e-3, 1e-2
# Evaluations on held-out tiles.
_LOOKS = 20
# Augmentation: radians, a logarithm, and a share of half the side.
_TILT, _ENLARGED, _MOVED = 0.17, 0.1, 0.1


def stack(tiles: TileSet, width: float = 1.0) -> StackSpec:
    """The base, a net for one cell, or one with a multiple of its channels."""
    a, b, c, d = (max(1, round(w * width)) for w in _WIDTHS)
    text = f"4/2:{a} 4/2:{b} 4/2:{c} 3:{d} 1:{len(tiles.classes)}"
    return StackSpec.parse(tiles.tiles.shape[-1], text)


def stack_of(tiles: TileSet, macs: float) -> StackSpec:
    """The net with the multiply-adds per tile nearest to a number."""
    widths = np.geomspace(0.1, 8, 400)
    return min((stack(tiles, float(w)) for w in widths), key=lambda spec: abs(spec.macs(1, 1) - macs))


def inputs(tiles: NDArray[np.uint8]) -> Tensor:
    """Input of nets, (n, c, SIDE, SIDE)."""
    return torch.from_numpy(np.ascontiguousarray(tiles.transpose(0, 3, 1, 2))).float() / 127.5 - 1


def answers_of(net: torch.nn.Module, x: Tensor) -> Tensor:
    """Logits of tiles, (n, classes)."""
    with torch.inference_mode():
        return torch.cat([net(x[i : i + 512])[:, :, 0, 0] for i in range(0, len(x), 512)])


def train_net(tiles: TileSet, parts: NDArray[np.int8], spec: StackSpec, *, steps: int, seed: int) -> ConvStack:
    """Train a net on augmented tiles, and keep the best state on held-out tiles.

    `parts` are those of `TileSet.parts`; the learning rate rises and falls once over the steps.
    """
    rows, held = np.flatnonzero(parts == TRAIN), np.flatnonzero(parts == HELD)
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ConvStack(spec, batch_norm=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.1)
    judged, target = inputs(tiles.tiles[held]), torch.from_numpy(tiles.labels[held])
    best, kept = math.inf, net.folded()
    looks = set(np.linspace(0, steps, _LOOKS + 1).astype(int).tolist()[1:])
    for step in range(1, steps + 1):
        part = np.sort(rng.choice(rows, min(_BATCH, len(rows)), replace=False))
        x = augmented(inputs(tiles.tiles[part]), tiles.turns[part], rng)
        loss = functional.cross_entropy(net.train()(x)[:, :, 0, 0], torch.from_numpy(tiles.labels[part]))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if step in looks:
            folded = net.eval().folded()
            seen = float(functional.cross_entropy(answers_of(folded, judged), target))
            best, kept = (seen, folded) if seen < best else (best, kept)
    return kept


def augmented(x: Tensor, turns: NDArray[np.bool_], rng: np.random.Generator) -> Tensor:
    """Tiles (n, c, h, w), float32, slightly rotated and moved; those in `turns`, (n,), in all eight orientations."""
    n = len(x)
    angle = rng.uniform(-_TILT, _TILT, n) + np.pi / 2 * rng.integers(0, 4, n) * turns
    mirror = np.where(turns & (rng.random(n) < 0.5), -1.0, 1.0)
    scale = np.exp(rng.uniform(-_ENLARGED, _ENLARGED, n))
    moved = rng.uniform(-_MOVED, _MOVED, (2, n))
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    theta = np.stack([np.stack([cos * mirror, -sin, moved[0]], 1), np.stack([sin * mirror, cos, moved[1]], 1)], 1)
    grid = functional.affine_grid(torch.from_numpy(theta).float(), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
