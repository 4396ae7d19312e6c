"""Model files of an earlier version, kept as they were: what they find, and at what cost, stays.

The finds beside them were written by the version that wrote the files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coarse2fine import analyze, load_model
from coarse2fine.bench.data import BenchScene
from coarse2fine.refiners.suppress import iou
from coarse2fine.tiling.opening import ImageSource

FOLDER = Path(__file__).parent / "fixtures" / "models"
KINDS = {"craters": "detect", "digits": "detect", "generic": "explore"}


def craters() -> NDArray[np.uint8]:
    """Rings on even ground, lit from the left."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:640, :640]
    scene = np.full((640, 640), 120.0) + rng.normal(0, 4, (640, 640))
    for _ in range(18):
        (cy, cx), radius = rng.integers(30, 610, 2), rng.uniform(8, 28)
        away = np.hypot(y - cy, x - cx)
        rim = np.exp(-(((away - radius) / (0.18 * radius)) ** 2))
        scene += 60 * rim * ((x - cx) / np.maximum(away, 1)) - 35 * (away < 0.8 * radius)
    return scene.clip(0, 255).astype(np.uint8)


def odd() -> NDArray[np.uint8]:
    """A patch of another texture in even noise."""
    pixels = np.random.default_rng(0).integers(90, 166, (512, 512, 3)).astype(np.uint8)
    y, x = np.mgrid[:48, :48]
    pixels[160:208, 320:368] = (128 + 90 * np.where((x // 6 + y // 6) % 2, 1, -1))[..., None]
    return pixels


def found_by(name: str, digits: ImageSource) -> dict[str, Any]:
    scenes: dict[str, ImageSource] = {"craters": craters(), "digits": digits, "generic": odd()}
    scene = scenes[name]
    analysis = analyze(scene, FOLDER / f"{name}.c2f", budget=0.4, precision="fp32")
    cost = analysis.cost
    return {
        "labels": [region.label for region in analysis.regions],
        "scores": [round(region.score, 4) for region in analysis.regions],
        "boxes": [[round(v, 2) for v in region.full_box] for region in analysis.regions],
        "macs": [cost.scan_macs, cost.refine_macs, cost.audit_macs, cost.exhaustive_macs],
        "str": str(load_model(FOLDER / f"{name}.c2f")),
    }


@pytest.mark.parametrize("name", sorted(KINDS))
def test_finds_and_costs_stay(name: str, digits: BenchScene) -> None:
    known = json.loads((FOLDER / "finds.json").read_text("utf-8"))[name]
    found = found_by(name, digits.image)
    assert known["labels"]
    assert found["labels"] == known["labels"]
    assert found["macs"] == known["macs"]
    assert found["str"].startswith(known["str"])  # lines were added since
    np.testing.assert_allclose(found["scores"], known["scores"], atol=0.005)
    # Boxes are means of those of neighbouring cells now.
    boxes, before = (np.array(each["boxes"], np.float64) for each in (found, known))
    assert iou(boxes, before).min() > 0.6


@pytest.mark.parametrize("name", sorted(KINDS))
def test_they_are_written_as_they_were(name: str, tmp_path: Path) -> None:
    model = load_model(FOLDER / f"{name}.c2f")
    assert model.refiner.kind == KINDS[name]
    again = load_model(model.save(tmp_path / "again.c2f"))
    assert str(again) == str(model)
    assert (tmp_path / "again.c2f").stat().st_size == pytest.approx((FOLDER / f"{name}.c2f").stat().st_size, abs=2000)
