"""Conversion of any image to an OME-Zarr pyramid, shard by shard, resumable after an interruption."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import dask
import numpy as np
import zarr
from dask.system import CPU_COUNT
from numpy.typing import NDArray

from ..errors import ImageError
from ..geometry import Box
from ..grid import TileGrid
from ..image import Image
from ..opening import ImageSource, Mpp, open_image
from ..storage.redact import identity
from ..value_range import Origin
from ..writing.atomic import TEMPORARY, check_absent
from ..writing.lock import locked
from ..writing.pyramid import ZSTD_LEVEL, create_levels, multiscales
from . import sharded_pyramid
from .journal import Journal
from .sharded_pyramid import ShardedPyramid

FORMAT = 1
"""Version of the output, to be raised if other bytes are written for the same source: older work is not resumed."""

Progress: TypeAlias = Callable[[int, int], None]

_JOURNAL = "journal.jsonl"
_PICTURES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion.

    Parameters
    ----------
    path : Path
        The OME-Zarr image.
    shape : (int, int, int)
        Height, width and channels at full resolution.
    levels : int
        Resolutions, the full one included.
    shards : int
        Shards of all levels.
    resumed : int
        Shards among them that an earlier, interrupted run had written.
    failures : tuple of str
        Damaged chunks of the source, each of which is black in the target.
    seconds : float
        Duration of this run.
    """

    path: Path
    shape: tuple[int, int, int]
    levels: int
    shards: int
    resumed: int
    failures: tuple[str, ...]
    seconds: float


class _Source:
    """The image to convert; its damaged chunks are read as black and recorded in the journal."""

    def __init__(self, image: Image, journal: Journal) -> None:
        self._image = image
        self._journal = journal
        self._chunks = TileGrid(image.height, image.width, image.levels[0].chunk)

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Read a box that lies inside the image.

        Raises
        ------
        ImageError
            If the disk or the server fails, which may be temporary, unlike damage.
        """
        try:
            return self._image.read(box)
        except ImageError as error:
            _check_damage(error)
        pixels = np.zeros((box.height, box.width, self._image.channels), np.uint8)
        for chunk in self._chunks.over(box):
            part = chunk.box.intersect(box)
            assert part is not None
            into = part.shift(-box.y0, -box.x0)
            try:
                pixels[into.slices] = self._image.read(part)
            except ImageError as error:
                _check_damage(error)
                self._journal.add([chunk.row, chunk.column, str(error)])
        return pixels


def _check_damage(error: ImageError) -> None:
    """Raise errors that are not from a decoder, but from the disk or the network."""
    if error.__cause__ is None or isinstance(error.__cause__, OSError):
        raise error


def convert(
    source: ImageSource,
    target: str | os.PathLike[str],
    *,
    workers: int | None = None,
    mpp: Mpp | None = None,
    value_range: tuple[float, float] | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Convert an image to OME-Zarr 0.5 with levels 1, 2, 4, ... until the smaller side is below 1024 pixels.

    Colour is stored as (c, y, x), grey as (y, x), 8 bits a sample, in chunks of 512 x 512 pixels, 64 to a file
    (a shard), compressed by zstd without loss. Each level is the rounded mean of 2 x 2 pixels of the one before.
    Memory does not grow with the image, but with `workers` and with the chunks of the source.

    The image is written to ``.NAME.partial`` beside its target (locked by ``.NAME.lock``) and renamed when it is
    complete. After an interruption, the same call resumes; if the source or a parameter has changed, it starts anew.

    Parameters
    ----------
    source : path, URL, array or Image
        Any source of `open_image`. Conversion of an array cannot be resumed.
    target : path
        Directory to write, such as "scene.zarr"; must not exist.
    workers : int, optional
        Threads; by default, one per processor.
    mpp : float or (float, float), optional
        Microns per pixel (y, x) to use instead of what the file says.
    value_range : (float, float), optional
        Stored values that become black and white; see `open_image`. The copy states the range.
    progress : callable, optional
        Called in this thread with the numbers of shards done and of all shards.

    Returns
    -------
    Conversion

    Raises
    ------
    FileExistsError
        If the target exists.
    ImageError
        If the source cannot be opened. Damaged chunks are not an error: they become black and are listed.
    BlockingIOError
        If another process writes the same target.
    OSError
        If the target cannot be written; whole shards are kept for the next run.
    ValueError
        If a number is out of range, or the target is named as a picture.
    """
    begin = time.perf_counter()
    target = Path(target)
    if target.suffix.lower() in _PICTURES:
        raise ValueError(f"{target} would be a Zarr folder: expected a name such as {target.stem}.zarr")
    check_absent(target)
    if workers is not None and workers < 1:
        raise ValueError(f"expected at least 1 worker, got {workers}")
    with ExitStack() as stack:
        image = open_image(source, mpp=mpp, value_range=value_range)
        if image is not source:
            stack.enter_context(image)
        partial = target.with_name(f".{target.name}.partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        busy = f"{partial} is being written by another process; wait for it, or end it"
        stack.enter_context(locked(target.with_name(f".{target.name}.lock"), busy))
        check_absent(target)  # another process may have finished it in the meantime
        partial.mkdir(exist_ok=True)
        if partial.is_symlink():  # its target would be emptied
            raise FileExistsError(f"{partial}: expected a folder that this conversion made, found a link; remove it")
        journal = Journal(partial / _JOURNAL)
        fingerprint = _fingerprint(image, source)
        if fingerprint is None:  # cannot be resumed
            stack.callback(shutil.rmtree, partial, ignore_errors=True)
        stack.enter_context(closing(journal))
        _prepare(partial, journal, fingerprint, image.shape)
        pyramid = ShardedPyramid(partial, image.shape, image.levels[0].chunk, _Source(image, journal).read)
        try:
            written = _write_missing(pyramid, workers or CPU_COUNT, progress)
        except OSError as error:
            raise OSError(
                f"{target}: cannot be written ({error}); fix this and convert again, what is done is kept"
            ) from error
        failures = tuple(message for *_, message in sorted(journal.records))
        zarr.open_group(partial, mode="r+").attrs.put(_attributes(image, len(pyramid.levels), failures))
        check_absent(target)
        journal.publish(target)
    shards = sum(len(level.shards) for level in pyramid.levels)
    seconds = time.perf_counter() - begin
    return Conversion(target, image.shape, len(pyramid.levels), shards, shards - written, failures, seconds)


def _prepare(partial: Path, journal: Journal, fingerprint: object, shape: tuple[int, int, int]) -> None:
    """Keep the shards of an interrupted conversion of the same source, or start anew."""
    if fingerprint is not None and journal.fingerprint == fingerprint:
        for left in partial.rglob(f"*{TEMPORARY}"):
            left.unlink()
        return
    journal.begin(None)
    for entry in partial.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != _JOURNAL:
            entry.unlink()
    create_levels(
        zarr.open_group(partial, mode="a", zarr_format=3), shape, sharded_pyramid.CHUNK, sharded_pyramid.SHARD
    )
    journal.begin(fingerprint)


def _fingerprint(image: Image, source: ImageSource) -> dict[str, Any] | None:
    """State of source and parameters that must be unchanged to resume, as parsed JSON; None for pixels in memory."""
    if image.location is None:
        return None
    if image.path is not None:
        state = _state(image.path)
    else:  # hashed, as addresses may contain secrets, which also distinguish images
        place = identity(source) if isinstance(source, str) else image.location
        state = {"source": hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest()}
    return {
        **state,
        "shape": list(image.shape),
        "mpp": None if image.mpp is None else list(image.mpp),
        "value_range": list(image.value_range),
        "notes": list(image.notes),
        "format": FORMAT,
        "written": [sharded_pyramid.CHUNK, sharded_pyramid.SHARD, ZSTD_LEVEL],
    }


def _state(path: Path) -> dict[str, str | int]:
    """Number, size in bytes and latest change of the files of an image."""
    files = [file.stat() for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path.stat()]
    return {
        "source": str(path.absolute()),
        "files": len(files),
        "bytes": sum(file.st_size for file in files),
        "mtime_ns": max((file.st_mtime_ns for file in files), default=0),
    }


def _write_missing(pyramid: ShardedPyramid, workers: int, progress: Progress | None) -> int:
    """Write the missing shards, each after those it is computed from; return their number."""
    tasks = _tasks(pyramid)
    weights = Counter(task.key for task in tasks.values())
    total = sum(len(level.shards) for level in pyramid.levels)
    done = total - len(tasks)

    def finished(key: str, *_: object) -> None:
        nonlocal done
        done += weights[key]
        if progress is not None and key in weights:
            progress(done, total)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="convert")
    try:
        # Callbacks given here, unlike those of dask's context manager, are not called for other computations.
        callbacks = [(None, None, None, finished, None)]
        dask.compute(*tasks.values(), scheduler="threads", pool=pool, callbacks=callbacks, optimize_graph=False)
    finally:
        pyramid.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    return len(tasks)


def _tasks(pyramid: ShardedPyramid) -> dict[tuple[int, int, int], Any]:
    """Dask task that writes a shard, for the (level, row, column) of each missing one."""
    run = dask.delayed(_run, pure=False)
    tasks: dict[tuple[int, int, int], Any] = {}
    for level in range(len(pyramid.levels)):
        for shards in pyramid.missing(level):
            row, column = shards[0].row, shards[0].column
            if level == 0:
                write, needed = functools.partial(pyramid.write_first, shards), []
            else:
                write = functools.partial(pyramid.write_halved, level, shards[0])
                under = [(level - 1, 2 * row + y, 2 * column + x) for y in (0, 1) for x in (0, 1)]
                needed = [tasks[place] for place in under if place in tasks]
            name = f"level {level}, row {row:06}, column {column:06}"
            task = run(write, needed, dask_key_name=name)
            tasks.update({(level, shard.row, shard.column): task for shard in shards})
    return tasks


def _run(write: Callable[[], None], _: list[None]) -> None:
    """Run a task; the second argument makes dask finish those that it depends on first."""
    write()


def _attributes(image: Image, levels: int, failures: tuple[str, ...]) -> dict[str, Any]:
    """Attributes of the group: those of OME-Zarr, and the origin of the pixels."""
    colours = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"} if image.channels == 3 else {"grey": "FFFFFF"}
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    channels = [{"label": name, "color": code, "active": True, "window": window} for name, code in colours.items()]
    return {
        "ome": {**multiscales(levels, image.channels, image.mpp, image.name), "omero": {"channels": channels}},
        "coarse2fine": {
            "version": FORMAT,
            "source": image.name if image.path is None else image.path.name,
            **Origin(image.scale, image.used).to_json(),
            "notes": list(image.notes),
            "failures": list(failures),
        },
    }
