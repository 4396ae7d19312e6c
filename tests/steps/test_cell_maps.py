"""Maps of cells in files: they hold what maps in memory hold, and analyses with them find the same."""

from __future__ import annotations

import pickle
import tempfile
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coarse2fine import Analysis, analyze
from coarse2fine.demo.digit_scene import DigitScene
from coarse2fine.steps import cell_maps
from coarse2fine.steps.cell_maps import mapped, new_map, release
from coarse2fine.tiling.geometry import Box


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_maps, "LARGE", 1)


@pytest.mark.parametrize(("shape", "dtype", "fill"), [((3, 5), np.float32, 0), ((2100, 2100, 3), np.uint8, 255)])
def test_a_map_in_a_file_is_filled_and_keeps_what_is_written(
    files: None, shape: tuple[int, ...], dtype: Any, fill: int
) -> None:
    made = new_map(shape, dtype, fill)
    assert mapped(made) is not None
    assert made.shape == shape
    assert (made == fill).all()
    made[1, 2] = 7
    release(made)
    assert (made[1, 2] == 7).all()
    assert np.count_nonzero(made != fill) == made[1, 2].size


@pytest.mark.parametrize("fill", [0, 9])
def test_small_maps_and_maps_without_space_are_in_memory(monkeypatch: pytest.MonkeyPatch, fill: int) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    assert mapped(new_map((4, 4), np.uint8, fill)) is None
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    made = new_map((cell_maps.LARGE // 4, 4), np.uint8, fill)
    assert mapped(made) is None
    assert (made == fill).all()
    release(made)


def found(pixels: NDArray[np.uint8], **options: Any) -> tuple[Any, ...]:
    seen: Analysis = analyze(pixels, "digits", precision="fp32", **options)
    return seen.interest.tobytes(), seen.plan.cell_corners.tolist(), seen.regions, seen.cost.macs, str(seen.audit)


@pytest.mark.parametrize("options", [{}, {"budget": 0.3, "recall": 0.9}])
def test_an_analysis_does_not_depend_on_where_its_maps_are(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    pixels = DigitScene(1024, 1024, digits=24, clutter=40, seed=3, handwriting="held-out").block(Box(0, 0, 1024, 1024))
    usual = found(pixels, **options)
    monkeypatch.setattr(cell_maps, "LARGE", 1)
    monkeypatch.setattr(cell_maps, "_RELEASED", 100)
    assert found(pixels, **options) == usual


def test_a_map_in_a_file_goes_to_other_processes(files: None) -> None:
    made = new_map((20, 30), np.float32)
    made[3, 4] = 5
    again = pickle.loads(pickle.dumps(made))
    assert type(again) is type(made) is np.ndarray
    assert (again == made).all()
