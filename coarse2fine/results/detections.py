"""Regions as ``supervision.Detections``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coarse2fine.region import Region
from coarse2fine.results.rasterize import region_chunks
from coarse2fine.tiling.errors import MissingExtraError

if TYPE_CHECKING:
    from supervision import Detections

_MOST_MASK_BYTES = 2**32
_CHUNK = 1024


def detections(regions: Sequence[Region], full_shape: tuple[int, int], *, masks: bool) -> Detections:
    """Regions as detections, in their order.

    Parameters
    ----------
    regions : sequence of Region
    full_shape : tuple of int
        Height and width of the image.
    masks : bool
        Whether to add masks: each is a whole image of bool.

    Returns
    -------
    supervision.Detections
        ``xyxy`` (float32, full-resolution pixels), ``confidence`` (float32), ``class_id`` (int64, from 0, in the
        alphabetical order of the labels), ``data["class_name"]`` and, if requested, ``mask`` (bool, (n, h, w)): pixels
        whose centres lie inside.

    Raises
    ------
    MissingExtraError
        If supervision is not installed (extra ``supervision``).
    ValueError
        If the masks would take more than 4 GiB.
    """
    try:
        import supervision  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingExtraError("supervision", "supervision.Detections", "supervision") from error
    numbers = {label: n for n, label in enumerate(sorted({region.label for region in regions}))}
    boxes = np.array([region.full_box for region in regions], np.float32).reshape(-1, 4)
    found: Detections = supervision.Detections(
        xyxy=boxes[:, [1, 0, 3, 2]],
        confidence=np.array([region.score for region in regions], np.float32),
        class_id=np.array([numbers[region.label] for region in regions], np.int64),
        mask=_masks(regions, full_shape) if masks else None,
        data={"class_name": np.array([region.label for region in regions], np.str_)},
    )
    return found


def _masks(regions: Sequence[Region], full_shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels of each region, (n, h, w); regions may overlap."""
    count_bytes = len(regions) * full_shape[0] * full_shape[1]
    if count_bytes > _MOST_MASK_BYTES:
        raise ValueError(
            f"masks of {len(regions):,} finds in {full_shape[1]:,} x {full_shape[0]:,} px take "
            f"{count_bytes / 1e9:,.1f} GB; leave out masks, or write to_ome_zarr(), whose labels hold only the finds"
        )
    masks = np.zeros((len(regions), *full_shape), np.bool_)
    for mask, region in zip(masks, regions, strict=True):
        for box, numbers in region_chunks([region], full_shape, _CHUNK):
            mask[box.y0 : box.y1, box.x0 : box.x1] = numbers > 0
    return masks
