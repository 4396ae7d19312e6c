"""A level of an image as a lazy dask array."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import zarr

from .formats.zarr_store import FetchStore


def chunk_array(
    shape: tuple[int, ...], chunks: tuple[int, ...], names: Iterable[str], chunk: Callable[[tuple[int, ...]], bytes]
) -> zarr.Array[Any]:
    """Wrap 8-bit chunks that a function returns as a lazy `zarr.Array`.

    Parameters
    ----------
    shape, chunks : tuple of int
    names : iterable of str
        Names of the axes.
    chunk : callable
        Returns the uncompressed bytes of the whole chunk at a grid position.
    """
    metadata = json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
            "chunk_key_encoding": {"name": "default"},
            "fill_value": 0,
            "codecs": [{"name": "bytes"}],
            "dimension_names": list(names),
            "attributes": {},
        }
    ).encode()

    def fetch(key: str, start: int | None, stop: int | None) -> bytes | None:
        if key == "zarr.json":
            return metadata[start:stop]
        if not key.startswith("c/"):
            return None
        return chunk(tuple(int(part) for part in key.split("/")[1:]))[start:stop]

    return zarr.open_array(store=FetchStore(fetch), mode="r", zarr_format=3)
