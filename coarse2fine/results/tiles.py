"""Tiles with refined windows as HDF5, in the layout of CLAM and TRIDENT."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine.model import Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.pixel_size import at_pixel_size
from coarse2fine.preprocess import normalised
from coarse2fine.refiners.net import net_of
from coarse2fine.tiling.errors import MissingExtraError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.summed_area import summed_area
from coarse2fine.tiling.window_reader import WindowReader
from coarse2fine.tiling.writing.atomic import replacing

if TYPE_CHECKING:
    from anndata import AnnData

_MAGNIFICATIONS = (80, 60, 40, 20, 10, 5)
_MICRONS_AT_ONE = 10.0
"""Microns per pixel at magnification 1: a 40x objective gives about 0.25."""
_NEAR = 1.3
_BATCH_PIXELS = 2_000_000
_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Patches:
    """Equal squares of an image, and features of each.

    Parameters
    ----------
    side : int
        Side of a square in full-resolution pixels.
    full_corners : ndarray, int64, (n, 2)
        (y, x) of each; the last row and column may reach beyond the image.
    features : ndarray, float32, (n, d), optional
    """

    side: int
    full_corners: NDArray[np.int64]
    features: NDArray[np.float32] | None = None


def interesting_patches(chosen: NDArray[np.bool_], cell: int, side: int) -> Patches:
    """The squares of a regular grid in which cells were chosen, in raster order.

    Parameters
    ----------
    chosen : ndarray, bool, (cell height, cell width)
    cell, side : int
        Sides of a cell and of a square, in full-resolution pixels.

    Raises
    ------
    ValueError
        If the side is below 1.
    """
    if side < 1:
        raise ValueError(f"expected tiles of at least 1 pixel, got {side}")
    # A summed-area table, since a list of the chosen cells of a gigapixel would take gigabytes.
    table = summed_area(chosen)
    (top, bottom), (left, right) = (_cells_under(length, cell, side) for length in chosen.shape)
    by_row = table[bottom] - table[top]
    return Patches(side, np.argwhere(by_row[:, right] > by_row[:, left]).astype(np.int64) * side)


def _cells_under(length: int, cell: int, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First cell under each square along one axis, and the cell after its last."""
    starts = np.arange(0, length * cell, side)
    return starts // cell, np.minimum((starts + side - 1) // cell + 1, length)


def with_features(patches: Patches, image: Image, model: Model, runtime: Runtime) -> Patches:
    """Add the mean of the refine net's high-level features; squares that cannot be read are left out.

    Parameters
    ----------
    patches : Patches
    image : Image
    model : Model
    runtime : Runtime

    Raises
    ------
    ValueError
        If a square is not a whole number of fine cells, or the model has no refine net.
    """
    model = at_pixel_size(model, image)
    spec, geometry = net_of(model.refiner).spec, model.geometry
    if patches.side % geometry.fine_cell:
        raise ValueError(
            f"expected tiles of a multiple of {geometry.fine_cell} px, the model's fine cell, got {patches.side}"
        )
    side = patches.side // geometry.refine_downsample
    boxes = [
        Box(y, x, y + side, x + side).expand(spec.margin)
        for y, x in (patches.full_corners // geometry.refine_downsample).tolist()
    ]
    features = np.zeros((len(boxes), spec.stages[-2].channels), np.float32)
    good = np.zeros(len(boxes), bool)
    for index, means in _means(boxes, patches.side // geometry.fine_cell, image, model, runtime):
        features[index], good[index] = means, True
    return Patches(patches.side, patches.full_corners[good], features[good])


def write_patches(path: str | os.PathLike[str], patches: Patches, image: Image) -> Path:
    """Write squares as HDF5: ``coords``, (n, 2) int64, (x, y) at full resolution, and ``features``, (n, d) float32.

    The attributes of ``coords`` are those that CLAM and TRIDENT write and require, so that their encoders can read the
    file. Magnifications are written if the pixel size is near that of an objective.

    Parameters
    ----------
    path : path-like
        An existing file is replaced once the new one is complete.
    patches : Patches
    image : Image

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    MissingExtraError
        If h5py is not installed (extra ``features``).
    """
    h5py = h5py_module()
    target = Path(path)
    with replacing(target) as temporary, h5py.File(temporary, "w") as file:
        coords = _table(file, "coords", patches.full_corners[:, ::-1])
        for name, value in _attributes(patches.side, image).items():
            coords.attrs[name] = value
        if patches.features is not None:
            _table(file, "features", patches.features)
    return target


def as_anndata(patches: Patches, image: Image) -> AnnData:
    """Squares with features as an annotated table, for scanpy and squidpy.

    Parameters
    ----------
    patches : Patches
        With features.
    image : Image

    Returns
    -------
    AnnData
        ``X`` holds the features, ``obsm["spatial"]`` the centres (x, y) in full-resolution pixels, ``uns`` the name of
        the image and the side of a square.

    Raises
    ------
    MissingExtraError
        If anndata is not installed (extra ``anndata``).
    """
    anndata = anndata_module()
    corners = patches.full_corners[:, ::-1]
    table = anndata.AnnData(X=patches.features, obsm={"spatial": corners + patches.side / 2})
    table.obs_names = [f"{image.name}-{x}-{y}" for x, y in corners.tolist()]
    table.uns["coarse2fine"] = {"image": image.name, "tile": patches.side}
    return table


def h5py_module() -> Any:
    """The package h5py, an extra; callers import it before long work, so that its absence shows at once.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    try:
        import h5py  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingExtraError("h5py", "writing HDF5", "features") from error
    return h5py


def anndata_module() -> Any:
    """The package anndata; see `h5py_module`."""
    try:
        import anndata  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingExtraError("anndata", "a table of this kind", "anndata") from error
    return anndata


def _means(
    boxes: list[Box], cells: int, image: Image, model: Model, runtime: Runtime
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Indices of readable boxes, and mean features over their cells, by batches."""
    net = runtime.place(net_of(model.refiner))
    batch_size = max(1, _BATCH_PIXELS // boxes[0].area) if boxes else 1
    with WindowReader(image, downsample=model.geometry.refine_downsample) as reader:
        for batch in reader.batches(boxes, batch_size):
            with torch.inference_mode():
                high = net.high(normalised(batch.pixels, model, runtime)).float()
            rim = (high.shape[-1] - cells) // 2  # margin that only the last stage reads
            inner = high[..., rim : rim + cells, rim : rim + cells]
            means = inner.mean(dim=(2, 3)).cpu().numpy()
            yield batch.index[~batch.failed], means[~batch.failed]


def _table(file: Any, name: str, rows: NDArray[Any]) -> Any:
    chunks = (max(1, min(len(rows), _CHUNK_ROWS)), rows.shape[1])
    return file.create_dataset(name, data=rows, chunks=chunks, maxshape=(None, rows.shape[1]))


def _attributes(side: int, image: Image) -> dict[str, Any]:
    size = (image.width, image.height)
    clam = {
        "patch_size": side,
        "patch_level": 0,
        "downsample": (1.0, 1.0),
        "downsampled_level_dim": size,
        "level_dim": size,
        "name": image.name,
        "save_path": "",
    }
    trident = {
        "patch_size_level0": side,
        "overlap": 0,
        "level0_width": image.width,
        "level0_height": image.height,
        "savetodir": "",
    }
    magnification = None if image.mpp is None else _magnification(sum(image.mpp) / 2)
    if magnification is not None:
        trident |= {"level0_magnification": magnification, "target_magnification": magnification}
    return clam | trident


def _magnification(mpp: float) -> int | None:
    """Magnification of the objective with the nearest pixel size; None if none is near."""
    found = _MICRONS_AT_ONE / mpp
    nearest = min(_MAGNIFICATIONS, key=lambda m: max(m / found, found / m))
    return nearest if max(nearest / found, found / nearest) <= _NEAR else None
