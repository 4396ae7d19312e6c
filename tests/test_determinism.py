"""The same image gives the same windows, numbers and files, however the work is divided.

Interruptions are tried in tests/batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr
from numpy.typing import NDArray

import coarse2fine as c2f
from coarse2fine.results.analysis import Analysis

SIDES = (200, 328)
# Seconds, and bytes read, are there alone; the log tells which worker did what.
UNEQUAL = {"timing.json", "record.json", "log.jsonl"}


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of each file of a result, by name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in UNEQUAL)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def pixels(make_image: Callable[..., NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return make_image(*SIDES, seed=3)


@pytest.fixture(scope="module")
def picture(pixels: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("determinism") / "scene.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb")
    return path


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["detector", "explorer"])
def test_batches_and_threads_change_no_file(
    name: str, picture: Path, tmp_path: Path, threads: Callable[[int], None], request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    results = []
    for batch, number in ((1, 1), (7, 4), (32, 1)):
        threads(number)
        with c2f.analyze(picture, model, budget=0.4, batch_size=batch, precision="fp32", progress=False) as analysis:
            assert len(analysis.plan) > 3
            results.append(contents(analysis.save(tmp_path / f"{batch}-{number}")))
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        assert [file for file, content in other.items() if content != results[0][file]] == []


def numbers(analysis: Analysis) -> list[NDArray[np.generic]]:
    """Windows, interest and finds of an analysis."""
    boxes = np.array([(*region.full_box, region.score) for region in analysis.regions])
    return [analysis.plan.cell_corners, analysis.plan.sides, analysis.interest, analysis.refined, boxes]


def test_chunks_change_no_number(detector: c2f.Model, picture: Path, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "strips.tif", pixels, rowsperstrip=17, photometric="rgb")
    tifffile.imwrite(tmp_path / "tiles.tif", pixels, tile=(32, 160), photometric="rgb", compression="zlib")
    stored = zarr.create_array(tmp_path / "plain.zarr", shape=pixels.shape, chunks=(50, 71, 3), dtype=np.uint8)
    stored[:] = pixels
    with c2f.analyze(picture, detector, budget=0.4, progress=False) as analysis:
        expected = numbers(analysis)
    for image in (pixels, tmp_path / "strips.tif", tmp_path / "tiles.tif", tmp_path / "plain.zarr"):
        with c2f.analyze(image, detector, budget=0.4, progress=False) as analysis:
            for mine, theirs in zip(numbers(analysis), expected, strict=True):
                np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_two_workers_write_what_one_process_writes(detector: c2f.Model, picture: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.tif", "b.tif", "c.tif"):
        (folder / name).write_bytes(picture.read_bytes())
    detector.save(tmp_path / "tiny.c2f")
    for workers in (0, 1, 2):
        made = c2f.analyze_folder(
            folder, tmp_path / str(workers), tmp_path / "tiny.c2f", workers=workers, report=False, progress=False
        )
        assert made.ok
    alone = contents(tmp_path / "0")
    for workers in (1, 2):
        beside = contents(tmp_path / str(workers))
        assert {name for name in alone if alone[name] != beside.get(name)} <= {"batch.json", "batch.csv"}
