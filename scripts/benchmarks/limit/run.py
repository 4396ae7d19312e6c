"""Time of an analysis beside the bare forward passes of its nets and the bare decoding of its chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine.batch.job import cores
from coarse2fine.bench.gigapixel import HugeScenes
from coarse2fine.bench.sections import Section, SectionReport, compared
from coarse2fine.engine import analyze
from coarse2fine.model import load_model
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.models.quantized import QuantizedStack
from coarse2fine.models.runtime import Runtime
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image

_EXPLAINED = (
    "analysis: wall-clock seconds of `analyze` without an audit, from opening to the finds. forwards: the same nets on "
    "tensors of the same shapes, one after another. decoding: the chunks that it decoded, each once more by the bare "
    "reader, in as many threads as there are cores. ratio: the analysis over the sum of the two, medians of "
    "interleaved rounds, with the quartiles of the rounds' ratios; below 1 if reading and computing overlap.",
)
_SEED = 41


@dataclass(frozen=True)
class LimitScale:
    """Extent of the measurement.

    Parameters
    ----------
    gigapixels : float
        Size of the scene for the default analysis.
    exhaustive : float
        Size of the scene for the exhaustive pass, in gigapixels.
    rounds : int
    """

    gigapixels: float
    exhaustive: float
    rounds: int


FULL, QUICK = LimitScale(1.0, 0.06, 5), LimitScale(0.06, 0.015, 3)


@dataclass
class _Work:
    """What an analysis asked of its nets, of those in integers, and of its decoder."""

    forwards: list[tuple[ConvStack, torch.Size, torch.dtype]]
    integers: list[tuple[QuantizedStack, tuple[int, ...]]]
    chunks: list[tuple[int, Box]]


def benchmark_limit(out: Path, *, scale: LimitScale = FULL) -> SectionReport:
    """Measure analyses of scenes of digits, kept in `out`, which must exist."""
    scenes = HugeScenes(out)
    rows = {"default": (scale.gigapixels, None), "exhaustive": (scale.exhaustive, 1.0)}
    figures: dict[str, float] = {}
    for name, (size, budget) in rows.items():
        found = _measured(scenes.make(size, _SEED).image, budget, scale.rounds)
        figures |= {f"{name}, {size:g} Gpx/{column}": value for column, value in found.items()}
    notes = [f"number format: {Runtime.choose().name}"]
    return SectionReport("limit", [Section("limit", figures)], (_SEED,), asdict(scale), _EXPLAINED, notes)


def _measured(source: Path | NDArray[np.uint8], budget: float | None, rounds: int) -> dict[str, float]:
    model = load_model("digits")
    # Without a limit an analysis would audit, whose windows depend on chance.
    options: dict[str, Any] = {"audit": 0.0} if budget is None else {"budget": budget}
    with recorded() as work, analyze(source, model, **options):
        pass
    times: dict[str, list[float]] = {"analysis": [], "forwards": [], "decoding": []}
    for _ in range(rounds):
        start = time.perf_counter()
        with analyze(source, model, **options):
            times["analysis"].append(time.perf_counter() - start)
        times["forwards"].append(_forward_seconds(work))
        times["decoding"].append(_decoding_seconds(source, work))
    bare = [a + b for a, b in zip(times["forwards"], times["decoding"], strict=True)]
    found = {name: float(np.median(values)) for name, values in times.items()}
    return found | {"chunks": len(work.chunks)} | compared("ratio", times["analysis"], bare)


@contextmanager
def recorded() -> Iterator[_Work]:
    """Record the forward passes and the decoded chunks of what runs inside."""
    work = _Work([], [], [])
    features, high, whole = ConvStack.features, ConvStack.high, QuantizedStack.__call__
    decode = Image._decode  # noqa: SLF001 (what a whole chunk passes through)

    def noted_features(net: ConvStack, x: torch.Tensor) -> list[torch.Tensor]:
        work.forwards.append((net, x.shape, x.dtype))
        return features(net, x)

    def noted_high(net: ConvStack, x: torch.Tensor) -> torch.Tensor:
        work.forwards.append((net, x.shape, x.dtype))
        return high(net, x)

    def noted_whole(net: QuantizedStack, pixels: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        work.integers.append((net, pixels.shape))
        return whole(net, pixels)

    def noted_decode(image: Image, level: int, box: Box) -> NDArray[np.uint8]:
        work.chunks.append((level, box))
        return decode(image, level, box)

    with (
        patch.object(ConvStack, "features", noted_features),
        patch.object(ConvStack, "high", noted_high),
        patch.object(QuantizedStack, "__call__", noted_whole),
        patch.object(Image, "_decode", noted_decode),
    ):
        yield work


def _forward_seconds(work: _Work) -> float:
    tensors = {
        key: torch.randn(key[0]).to(key[1], memory_format=torch.channels_last)
        for key in {(shape, dtype) for _, shape, dtype in work.forwards}
    }
    pixels = {shape: np.zeros(shape, np.uint8) for _, shape in work.integers}
    with torch.inference_mode():
        start = time.perf_counter()
        for net, shape, dtype in work.forwards:
            net(tensors[shape, dtype])
        for whole, size in work.integers:
            whole(pixels[size])
        return time.perf_counter() - start


def _decoding_seconds(source: Path | NDArray[np.uint8], work: _Work) -> float:
    with open_image(source) as image, ThreadPoolExecutor(cores()) as pool:
        read = image._source.read  # noqa: SLF001 (without the cache)
        start = time.perf_counter()
        for _ in pool.map(lambda chunk: read(*chunk), work.chunks):
            pass
        return time.perf_counter() - start
