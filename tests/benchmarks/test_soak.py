"""A worker that runs for long keeps its memory, files and threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.soak.run import Curve, SoakScale, draw, soak, write_images

IMAGES = 240


def test_growth_is_that_of_the_second_half(tmp_path: Path) -> None:
    done = np.arange(0, 1001, 10)
    memory = np.where(done < 500, done, 500 + (done - 500) * 0.02)  # 20 MB per thousand, after loading
    flat = np.full(len(done), 7)
    curve = Curve(done, memory.astype(float), flat, flat)
    assert curve.growth(curve.memory) == pytest.approx(20, rel=1e-6)
    assert curve.growth(curve.files) == pytest.approx(0, abs=1e-9)
    draw(curve, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 10_000


def test_images_are_of_all_kinds(tmp_path: Path) -> None:
    write_images(tmp_path / "in", SoakScale(30, 64))
    names = [path.suffix for path in (tmp_path / "in").iterdir()]
    assert len(names) == 30
    assert len(set(names)) == 3


@pytest.mark.slow
def test_a_worker_does_not_grow(tmp_path: Path) -> None:
    curve = soak(tmp_path, SoakScale(IMAGES, 96), lambda *_: None)
    assert curve.done[-1] > IMAGES * 0.9
    # Allocators vary by more than ten MB, and the slope with them: this finds leaks from a tenth of a MB an image on.
    assert curve.growth(curve.memory) * IMAGES / 1000 < 24
    assert curve.growth(curve.files) * IMAGES / 1000 < 4
    assert curve.growth(curve.threads) * IMAGES / 1000 < 4
