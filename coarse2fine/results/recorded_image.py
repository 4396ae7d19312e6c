"""Metadata of an image stored with a result; the image itself is opened when pixels are needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box, GeoReference, Level, PixelSize
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.mending import Damage
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.stats import ReadStats
from coarse2fine.tiling.storage.redact import MASK
from coarse2fine.tiling.storage.remote import is_url
from coarse2fine.tiling.value_range import ValueRange


def record_of(image: Image) -> dict[str, Any]:
    """Metadata of an image, as JSON values."""
    local = image.path is not None
    return {
        "name": image.name,
        "path": os.path.abspath(str(image.path)) if local else image.location,  # noqa: PTH100 (keeps links as they are)
        "format": image.format,
        "shape": list(image.shape),
        "picked": None if image.picked is None else list(image.picked),
        "levels": [
            {"shape": [at.height, at.width], "downsample": [at.downsample_y, at.downsample_x], "chunk": list(at.chunk)}
            for at in image.levels
        ],
        "mpp": image.mpp,
        "pixel_size": image.pixel_size,
        "geo": image.geo,
        "masked": image.masked,
        "value_range": image.value_range,
        "used": list(image.used),
        "rule": image.scale.rule,
        "samples": image.scale.dtype,
        "notes": list(image.notes),
    }


class RecordedImage(Image):
    """An image restored from its metadata; see `Image`.

    Parameters
    ----------
    record : mapping
        Output of `record_of`, as read back from JSON.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        path = record["path"]
        self.location = path
        self.path = None if path is None or is_url(path) else Path(path)
        self.name, self.format = record["name"], record["format"]
        self.levels = tuple(_level(index, each) for index, each in enumerate(record["levels"]))
        self.channels = record["shape"][2]
        self.picked = None if record["picked"] is None else tuple(record["picked"])
        self.used = tuple(record.get("used") or self.picked or range(self.channels))
        self.masked = record["masked"]
        low, high = record["value_range"]
        self._recorded = ValueRange(low, high, record.get("rule", "given"), record.get("samples", "uint8"))
        self.mpp = None if record["mpp"] is None else (record["mpp"][0], record["mpp"][1])
        self.pixel_size = None if record["pixel_size"] is None else PixelSize(**record["pixel_size"])
        geo = record["geo"]
        self.geo = None if geo is None else GeoReference(tuple(geo["transform"]), geo["crs"], geo["unit"])
        self._notes = tuple(record["notes"])
        self.stats, self.damage = ReadStats(), Damage()
        self._reopen = partial(RecordedImage, dict(record))
        self._opened: Image | None = None
        self._closed = False
        self._opening = threading.Lock()

    @property
    def scale(self) -> ValueRange:
        return self._recorded

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes

    def close(self) -> None:
        self._closed = True
        if self._opened is not None:
            self._opened.close()

    def read(self, box: Box, level: int = 0) -> NDArray[np.uint8]:
        return self._image().read(box, level)

    def read_mask(self, box: Box, level: int = 0) -> NDArray[np.bool_]:
        return self._image().read_mask(box, level)

    def array(self, level: int = 0) -> zarr.Array[Any]:
        return self._image().array(level)

    def _image(self) -> Image:
        """The image itself, opened at the first call."""
        with self._opening:
            if self._closed:
                raise self._closed_error()
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> Image:
        if self.location is None:
            raise ImageError(
                "the result's image was an array, which was not saved; pass its pixels: "
                "Analysis.load(folder, image=array)"
            )
        if self.path is None and MASK in self.location:
            raise ImageError(
                f"{self.location}: its password or signature is not stored with the result; pass the whole address: "
                "--image ADDRESS, or Analysis.load(folder, image=address)"
            )
        try:
            ends = min(self.value_range), max(self.value_range)
            image = open_image(self.location, mpp=self.mpp, channels=self.picked, value_range=ends)
        except ImageError as error:
            raise ImageError(
                f"{error}; if it was moved, pass it: --image PATH, or Analysis.load(folder, image=path)"
            ) from error
        if image.shape != self.shape:
            image.close()
            raise ImageError(
                f"{self.location} is not the image of the result: expected {self.shape} "
                f"(height, width, channels), got {image.shape}; analyse it again"
            )
        return image


def _level(index: int, record: Mapping[str, Any]) -> Level:
    (height, width), (downsample_y, downsample_x), (chunk_height, chunk_width) = (
        record[name] for name in ("shape", "downsample", "chunk")
    )
    return Level(index, height, width, downsample_y, downsample_x, (chunk_height, chunk_width))
