"""One task in a process of its own, to measure its memory.

``python -P child.py TASK [PATH ...]`` prints the process's peak memory in bytes and the seconds that the task took, as
JSON. It imports what reading needs and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

from coarse2fine.bench.peak import peak_memory
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.window_reader import WindowReader

TILES = 1000
TILE_SIDE = 512
_BATCH = 16


def tiles(path: str) -> None:
    """Read tiles anywhere in the image, in batches."""
    rng = np.random.default_rng(0)
    with open_image(path) as image, WindowReader(image) as reader:
        limits = max(1, image.height - TILE_SIDE), max(1, image.width - TILE_SIDE)
        corners = rng.integers(0, limits, (TILES, 2)).tolist()
        for _ in reader.batches([Box(y, x, y + TILE_SIDE, x + TILE_SIDE) for y, x in corners], _BATCH):
            pass


def conversion(source: str, target: str) -> None:
    """Convert an image to OME-Zarr."""
    from coarse2fine.tiling.conversion.convert import convert  # noqa: PLC0415 (not in the baseline)

    convert(source, target)


TASKS: dict[str, Callable[..., None]] = {"import": lambda: None, "tiles": tiles, "conversion": conversion}


if __name__ == "__main__":
    begin = time.perf_counter()
    TASKS[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({"peak": peak_memory(), "seconds": time.perf_counter() - begin}))
