"""Nets of the specialists benchmark, trained end to end until what is held back gets no better."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from coarse2fine.bench.specialists_data import HELD, TRAIN, TileSet
from coarse2fine.models.conv_stack import ConvStack, StackSpec

_WIDTHS = (8, 16, 32, 64)
TOP = _WIDTHS[-1]
_BATCH, _RATE, _DECAY = 128, 3e-3, 1e-2
# The rate is cut after so many epochs without progress, and training ends at the last cut.
_PATIENCE, _CUTS = 3, 3


@dataclass(frozen=True)
class Trained:
    """A net at its plateau, and the epochs that took."""

    net: ConvStack
    epochs: int


def stack(tiles: TileSet, width: float) -> StackSpec:
    """A net for one cell, with so many times the base's channels."""
    a, b, c, d = (max(1, round(w * width)) for w in _WIDTHS)
    text = f"4/2:{a} 4/2:{b} 4/2:{c} 3:{d} 1:{len(tiles.classes)}"
    return StackSpec.parse(tiles.tiles.shape[-1], text)


def stack_of(tiles: TileSet, macs: float) -> StackSpec:
    """The net whose multiply-adds for a tile come nearest to a number."""
    widths = np.geomspace(0.1, 8, 400)
    return min((stack(tiles, float(w)) for w in widths), key=lambda spec: abs(spec.macs(1, 1) - macs))


def inputs(tiles: NDArray[np.uint8]) -> Tensor:
    """What nets read, (n, c, SIDE, SIDE)."""
    return torch.from_numpy(np.ascontiguousarray(tiles.transpose(0, 3, 1, 2))).float() / 127.5 - 1


def answers_of(net: torch.nn.Module, tiles: NDArray[np.uint8]) -> Tensor:
    """Logits of tiles, (n, classes)."""
    with torch.inference_mode():
        parts = [net(inputs(tiles[i : i + 512]))[:, :, 0, 0] for i in range(0, len(tiles), 512)]
    return torch.cat(parts)


def train_net(
    tiles: TileSet, parts: NDArray[np.int8], spec: StackSpec, *, steps: int, seed: int, extra: int = 0
) -> Trained:
    """Train a net to its plateau; what was best on the tiles held back is kept.

    Parameters
    ----------
    tiles : TileSet
    parts : ndarray, int8, (n,)
    spec : StackSpec
    steps : int
        Most steps of optimisation.
    seed : int
    extra : int
        Epochs after that, from the highest rate down to none once more.
    """
    rows, held = np.flatnonzero(parts == TRAIN), np.flatnonzero(parts == HELD)
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ConvStack(spec, batch_norm=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
    target = torch.from_numpy(tiles.labels[held])
    most = max(1, steps * min(_BATCH, len(rows)) // len(rows))
    best, kept, waited, cuts, epoch = math.inf, net.folded(), 0, 0, 0
    left = extra
    while (cuts < _CUTS and epoch < most) or left:
        if cuts >= _CUTS or epoch >= most:
            _rate(optimizer, _RATE * (1 + math.cos(math.pi * (extra - left) / extra)) / 2)
            left -= 1
        _epoch(net, optimizer, tiles, rng.permutation(rows))
        epoch += 1
        folded = net.folded()
        loss = float(functional.cross_entropy(answers_of(folded, tiles.tiles[held]), target))
        waited = 0 if loss < best else waited + 1
        if loss < best:
            best, kept = loss, folded
        if waited == _PATIENCE:
            waited, cuts = 0, cuts + 1
            _rate(optimizer, _RATE * 0.3**cuts)
    return Trained(kept, epoch)


def _rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _epoch(net: ConvStack, optimizer: torch.optim.Optimizer, tiles: TileSet, rows: NDArray[np.intp]) -> None:
    net.train()
    batch = min(_BATCH, len(rows))
    for start in range(0, len(rows) - batch + 1, batch):
        part = rows[start : start + batch]
        loss = functional.cross_entropy(
            net(inputs(tiles.tiles[part]))[:, :, 0, 0], torch.from_numpy(tiles.labels[part])
        )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
    net.eval()
