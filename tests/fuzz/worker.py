"""Does with an input what a user would do: ``python -m tests.fuzz.worker``, one request a line, one answer a line."""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from coarse2fine.annotations.read import AnnotationError, read_annotations
from coarse2fine.model import load_model
from coarse2fine.models.errors import ModelError
from coarse2fine.steps.mask import cells_inside
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.quiet import quiet

_MOST_READ = 1024


def main() -> None:
    """Answer until there are no more requests."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_answer(request["kind"], Path(request["path"]))), flush=True)


def _answer(kind: str, path: Path) -> dict[str, Any]:
    before, start = _peak(), time.perf_counter()
    outcome, detail = "read", ""
    pixels = None
    try:
        pixels = _ACTIONS[kind](path)
    except (ImageError, AnnotationError, ModelError, ValueError) as error:
        outcome, detail = "refused", f"{type(error).__name__}: {error}"
        expected = ImageError if kind == "image" else (AnnotationError, ModelError, ValueError)
        if path.name not in str(error) or not isinstance(error, expected):
            outcome = "fault"
    except BaseException as error:  # noqa: BLE001 (whatever it is, it is a fault)
        outcome, detail = "fault", f"{type(error).__name__}: {error}"
    seconds, megabytes = time.perf_counter() - start, max(0.0, _peak() - before)
    if pixels is not None and _differs(path, pixels):
        outcome = "differs"
    return {"outcome": outcome, "detail": detail[:400], "seconds": seconds, "megabytes": megabytes}


def _peak() -> float:
    """Most memory that this process ever had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _image(path: Path) -> NDArray[np.uint8] | None:
    """Open, ask for what is known, and read a part of each level; what cannot be decoded may be told on reading."""
    with open_image(path) as image:
        assert image.notes is not None
        assert image.value_range is not None
        part: NDArray[np.uint8] | None = None
        for level in image.levels:
            box = Box(0, 0, min(level.height, _MOST_READ), min(level.width, _MOST_READ))
            pixels = image.read(box, level.index)
            image.read_mask(box, level.index)
            part = pixels if level.index == 0 else part
        image.read_scaled(Box(0, 0, 8, 8), 4)
        unusual = image.value_range != (0.0, 255.0) or image.masked or bool(image.notes)
        return None if unusual or max(image.shape[:2]) > _MOST_READ else part


def _mask(path: Path) -> None:
    with open_image(np.zeros((192, 160), np.uint8)) as image:
        cells_inside(path, image, 8)


def _annotations(path: Path) -> None:
    read_annotations(path, full_shape=(192, 160))


def _model(path: Path) -> None:
    load_model(path)


def _differs(path: Path, pixels: NDArray[np.uint8]) -> bool:
    """Whether another reader reads the whole file too, and reads something else."""
    try:
        with quiet():  # what the other reader says is not ours
            other = _reference(path)
    except Exception:  # noqa: BLE001 (it does not read the file: no opinion)
        return False
    if other is None or other.dtype != np.uint8:
        return False
    other = other[..., None] if other.ndim == 2 else other
    return other.shape == pixels.shape and not np.array_equal(other, pixels)


def _reference(path: Path) -> NDArray[Any] | None:
    name = path.name
    if name.endswith(".tif"):
        return np.asarray(tifffile.imread(path)) if name.startswith(("plain", "deflate", "lzw", "packbits")) else None
    if name.endswith(".zarr"):
        array = zarr.open(str(path), mode="r") if not name.startswith("ome") else None
        return np.moveaxis(np.asarray(array), 0, -1) if isinstance(array, zarr.Array) else None
    if name.endswith(".png"):
        return np.asarray(imagecodecs.png_decode(path.read_bytes()))
    if name.endswith(".bmp"):
        found = cv2.imread(str(path), cv2.IMREAD_COLOR)
        return None if found is None else np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB))
    return None


_ACTIONS: dict[str, Any] = {
    "image": _image,
    "annotations": _annotations,
    "mask": _mask,
    "model": _model,
}

if __name__ == "__main__":
    main()
