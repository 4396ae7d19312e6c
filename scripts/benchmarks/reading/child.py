"""One task in a process of its own, to measure its memory.

``python -P child.py TASK [PATH ...]`` prints the process's peak memory in bytes and the seconds that the task took, as
JSON. It imports what reading needs and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.window_reader import WindowReader

TILES = 1000
TILE_SIDE = 512
PEAK_IS_KNOWN = sys.platform != "win32"
"""Whether `peak_memory` works here."""
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


def peak_memory() -> int:
    """Peak memory of this process in bytes; not on Windows."""
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux `getrusage` includes the memory that the parent held when it started this process.
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:")
    import resource  # noqa: PLC0415 (not on Windows)

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    begin = time.perf_counter()
    TASKS[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({"peak": peak_memory(), "seconds": time.perf_counter() - begin}))
