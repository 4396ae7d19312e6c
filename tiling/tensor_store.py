"""Chunks of a local Zarr read by tensorstore, an extra."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError


class TensorStoreArray:
    """A Zarr array that tensorstore slices; it keeps no cache, as ours holds what is needed again.

    Parameters
    ----------
    path : str
        Folder of the array.
    metadata : mapping
        Its `zarr.json` or `.zarray`.

    Raises
    ------
    ImageError
        If tensorstore is not installed.
    """

    def __init__(self, path: str, metadata: Mapping[str, Any]) -> None:
        try:
            import tensorstore  # noqa: PLC0415 (an extra)
        except ImportError as error:
            raise ImageError(
                f'{path}: tensorstore is not installed ({error}); pip install "coarse2fine[tensorstore]"'
            ) from error
        driver = "zarr3" if metadata["zarr_format"] == 3 else "zarr"
        self._store = tensorstore.open(
            {"driver": driver, "kvstore": {"driver": "file", "path": path}}, read=True
        ).result()
        self.shape: tuple[int, ...] = tuple(self._store.shape)
        self.dtype: np.dtype[Any] = np.dtype(self._store.dtype.numpy_dtype)
        self.chunks: tuple[int, ...] = tuple(size or 1 for size in self._store.chunk_layout.read_chunk.shape or ())

    def __getitem__(self, key: tuple[Any, ...], /) -> NDArray[Any]:
        """Read the part under slices or indices."""
        pixels: NDArray[Any] = self._store[key].read().result()
        return pixels
