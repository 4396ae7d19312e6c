"""The cheap look at everything: the base on the whole image at low resolution, block by block with halo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coarse2fine.model import Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box, ceil_div
from coarse2fine.tiling.grid import blocks, even
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.reader import WindowReader, salvage

BLOCK_PIXELS = 1024
FIRED = 3
# Naming the features that fired is for windows; cells below this probability are never worth one.
_NAMED_FROM = 1e-3

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Scan:
    """What the look at the whole image saw.

    Parameters
    ----------
    interest : ndarray, float32, (cell height, cell width)
        Probability that refining the cell finds something.
    fired : ndarray, uint8, (cell height, cell width, 3)
        High-level features that spoke loudest, strongest first; 255 where none did.
    macs : int
        Multiply-adds spent, halos included.
    failures : tuple of str
        Why parts could not be read; they were seen as grey, or not at all where a whole block was lost.
    """

    interest: NDArray[np.float32]
    fired: NDArray[np.uint8]
    macs: int
    failures: tuple[str, ...] = ()

    @classmethod
    def none(cls) -> Scan:
        """No scan at all: empty maps."""
        return cls(np.zeros((0, 0), np.float32), np.zeros((0, 0, FIRED), np.uint8), 0)


def look(image: Image, model: Model, runtime: Runtime, tick: Tick | None = None) -> Scan:
    """Scan the whole image with a model that knows what it seeks.

    Parameters
    ----------
    image : Image
    model : Model
        A "detect" model; see `coarse2fine.explore` for the other kind.
    runtime : Runtime
    tick : callable, optional
        Called with blocks done and blocks in all.
    """
    assert model.firing is not None
    shape = model.cell_shape((image.height, image.width))
    interest = np.zeros(shape, np.float32)
    fired = np.full((*shape, FIRED), 255, np.uint8)
    macs = 0
    failures: list[str] = []
    for cell_box, high, logit, cost in features(image, model, runtime, tick, failures):
        rows, columns = slice(cell_box.y0, cell_box.y1), slice(cell_box.x0, cell_box.x1)
        probability = model.firing.probability(high[None], logit[None])[0]
        interest[rows, columns] = probability.cpu().numpy()
        y, x = torch.nonzero(probability > _NAMED_FROM, as_tuple=True)
        names = model.firing.strongest(high[:, y, x].T, FIRED).numpy()
        fired[cell_box.y0 + y.cpu().numpy(), cell_box.x0 + x.cpu().numpy(), : names.shape[1]] = names
        macs += cost
    return Scan(interest, fired, macs, tuple(failures))


def features(
    image: Image,
    model: Model,
    runtime: Runtime,
    tick: Tick | None = None,
    failures: list[str] | None = None,
) -> Iterator[tuple[Box, Tensor, Tensor, int]]:
    """High-level activations and answers of the base, block by block.

    Parameters
    ----------
    image : Image
    model : Model
    runtime : Runtime
    tick : callable, optional
        Called with blocks done and blocks in all.
    failures : list of str, optional
        Takes the reasons why parts of blocks could not be read; these are grey, and blocks of nothing else left out.

    Yields
    ------
    cell_box : Box
        The block, in cells, clipped to the image.
    high : Tensor, float, (c, h, w)
    logit : Tensor, float32, (channels of the last stage, h, w)
    macs : int
        Multiply-adds of the block, halo included.

    Raises
    ------
    ImageError
        If no block can be read.
    """
    net = runtime.place(model.base)
    spec = net.spec
    cell_shape = model.cell_shape((image.height, image.width))
    height, width = _block_shape(model, cell_shape)
    grid = list(blocks(*cell_shape, (height, width)))
    # All blocks have one shape; what reaches beyond the image repeats its edge and is cropped from the answer.
    boxes = [Box(b.y0, b.x0, b.y0 + height, b.x0 + width).scale(spec.stride).expand(spec.margin) for b in grid]
    cost = spec.macs(height, width)
    seen = False
    with WindowReader(image, downsample=model.geometry.scan_downsample) as reader:
        for done, batch in enumerate(reader.batches(boxes, 1)):
            if tick:
                tick(done + 1, len(grid))
            index = int(batch.index[0])
            pixels = _salvaged(image, model, boxes[index]) if batch.failed[0] else batch.pixels
            if pixels is None:
                continue
            seen, cell_box = True, grid[index]
            with torch.inference_mode():
                high = net.features(normalised(pixels, model, runtime))[-1]
                logit = net.head(high)[0].float()
            yield (
                cell_box,
                high[0, :, : cell_box.height, : cell_box.width],
                logit[:, : cell_box.height, : cell_box.width],
                cost,
            )
        if not seen:
            raise ImageError(f"no part of {image.name} can be read: {reader.failures[0]}")
        if failures is not None:
            failures.extend(reader.failures)


def scan_macs(model: Model, cell_shape: tuple[int, int]) -> int:
    """Multiply-adds that scanning an image of so many cells takes, halos included."""
    height, width = _block_shape(model, cell_shape)
    count = ceil_div(cell_shape[0], height) * ceil_div(cell_shape[1], width)
    return count * model.base.spec.macs(height, width)


def _block_shape(model: Model, cell_shape: tuple[int, int]) -> tuple[int, int]:
    """Cells of a block that is scanned at once."""
    most = max(8, BLOCK_PIXELS // model.base.spec.stride)
    return even(cell_shape[0], most), even(cell_shape[1], most)


def _salvaged(image: Image, model: Model, box: Box) -> NDArray[np.uint8] | None:
    """A block of which parts cannot be read, in a batch of its own; those are of the model's mean grey."""
    read = partial(image.read_scaled, downsample=model.geometry.scan_downsample)
    try:
        return salvage(read, box, fill=round(255 * float(np.mean(model.mean))))[None]
    except ImageError:
        return None


def normalised(pixels: NDArray[np.uint8], model: Model, runtime: Runtime) -> Tensor:
    """An (n, h, w, c) uint8 batch as the model's nets want it: its channels, its normalisation."""
    pixels = as_channels(pixels, model.channels)
    return runtime.pixels(pixels, np.array(model.mean, np.float32), np.array(model.std, np.float32))


def as_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Grey to RGB, or RGB to grey by ITU-R 601 luma, where the image has other channels than asked for."""
    found = pixels.shape[-1]
    if found == channels:
        return np.ascontiguousarray(pixels)
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    flat = pixels.reshape(-1, pixels.shape[-2], 3)
    return cv2.cvtColor(flat, cv2.COLOR_RGB2GRAY).reshape(*pixels.shape[:-1], 1)  # type: ignore[return-value]
