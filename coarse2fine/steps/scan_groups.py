"""Specialists that the scan chooses: which groups of its features fire in the cells of a window.

The base's features at a cell are known before any pixel is read at full resolution. A group fires in a block of cells,
fixed in the image, if one of its features fires in any cell of it, so that the choice does not depend on the windows.
Cells that the base did not scan, since an earlier stage of the cascade left them out or since every cell is refined
without a scan, are scanned when they are refined.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine.model import Model
from coarse2fine.models.feature_groups import by_block
from coarse2fine.models.runtime import Runtime
from coarse2fine.preprocess import fill_value, normalised
from coarse2fine.specialists.groups import SpecialistGroups
from coarse2fine.steps.scan import SCANNED, group_bits
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.window_reader import WindowReader
from coarse2fine.tiling.window_table import Windows

_BATCH_PIXELS = 600_000


class ScanGroups:
    """Says for any windows where groups of the scan's features fire.

    Parameters
    ----------
    image : Image
    model : Model
    own : SpecialistGroups
        Specialists that the scan chooses.
    runtime : Runtime
    scanned : ndarray, uint16, (cell height, cell width), optional
        `Scan.groups`; without it no cell was scanned.

    Attributes
    ----------
    macs_spent : int
        Multiply-adds of the base for windows that it had not scanned.
    """

    def __init__(
        self, image: Image, model: Model, own: SpecialistGroups, runtime: Runtime, scanned: NDArray[np.uint16] | None
    ) -> None:
        self._image, self._model, self._own, self._runtime = image, model, own, runtime
        self._shape = model.cell_shape(image.shape[:2])
        self._scanned = np.zeros(self._shape, np.uint16) if scanned is None else scanned
        self._net = runtime.place(model.base)
        self.macs_spent = 0
        self.failures: dict[str, None] = {}

    def __call__(self, corners: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Whether each group fires in each fine cell of windows; see `ImageContext.fires`."""
        fine, block = self._model.geometry.fine, self._own.block
        first, sides = corners // fine, (shape[0] // fine, shape[1] // fine)
        tops = first // block * block
        bits, known = self._stored(tops, first, sides)
        missing = np.flatnonzero(~known.all(axis=(1, 2)))
        if len(missing):
            found = self._scan(tops[missing], bits.shape[1:])
            bits[missing] = np.where(known[missing], bits[missing], found)
        fires = torch.from_numpy(
            (bits[:, None] >> np.arange(len(self._own.columns), dtype=np.uint16)[:, None, None]) & 1
        )
        cells = by_block(fires.bool(), block).numpy()
        offsets = (first - tops).tolist()
        own = np.stack([f[:, y : y + sides[0], x : x + sides[1]] for f, (y, x) in zip(cells, offsets, strict=True)])
        return own.repeat(fine, axis=2).repeat(fine, axis=3)

    def _stored(
        self, tops: NDArray[np.int64], first: NDArray[np.int64], sides: tuple[int, int]
    ) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Bits of the cells of all blocks that windows may touch, and which are known or not needed."""
        block = self._own.block
        at, needed = [], []
        for axis in (0, 1):
            rows = tops[:, axis, None] + np.arange(self._own.reach(sides[axis]))
            ends = -(-(first[:, axis, None] + sides[axis]) // block) * block
            at.append(np.minimum(rows, self._shape[axis] - 1))
            needed.append(rows < np.minimum(ends, self._shape[axis]))
        inside = needed[0][:, :, None] & needed[1][:, None]
        bits = np.where(inside, self._scanned[at[0][:, :, None], at[1][:, None]], 0).astype(np.uint16)
        return bits, ~inside | (bits & SCANNED > 0)

    def _scan(self, tops: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.uint16]:
        """Run the base on rectangles of `shape` cells."""
        spec, model = self._net.spec, self._model
        windows = Windows.of_cells(tops, shape, spec.stride, spec.margin)
        found = np.zeros((len(tops), *shape), np.uint16)
        fill = fill_value(model)
        with WindowReader(self._image, downsample=model.geometry.scan_downsample, fill=fill) as reader:
            for batch in reader.batches(windows, max(1, _BATCH_PIXELS // windows.area)):
                batch.pixels[batch.failed] = fill
                with torch.inference_mode():
                    high = self._net.high(normalised(batch.pixels, model, self._runtime))
                found[batch.index] = group_bits(self._own.groups, high)
            self.failures |= dict.fromkeys(reader.failures)
        self.macs_spent += len(tops) * spec.macs(*shape)
        return found
