"""Refiners and bases of other packages: the page's own code, registered by hand or found through entry points."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from coarse2fine import ModelError, analyze, fit, load_model, register_refiner
from coarse2fine.bases import register_base, unfitted
from coarse2fine.batch.estimate import estimate
from coarse2fine.batch.inputs import find_items
from coarse2fine.batch.request import BatchRequest
from coarse2fine.model import Geometry, Model
from coarse2fine.models.firing import calibrate_firing
from coarse2fine.results.tiles import Patches, with_features
from coarse2fine.tiling.opening import open_image

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
SMALL = (
    ("refiner", "_CROP", 10),
    ("refiner", "_BATCH", 4),
    ("base", "_LONGER_TUNED", 1),
    ("distillation", "_SAMPLES", 60),
)
GEOMETRY = Geometry(cell=16, scan_downsample=4, refine_downsample=1, fine=2)


def code(heading: str) -> str:
    """The Python of one section of the page."""
    section = PAGE.read_text("utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))


def ran(heading: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    exec(code(heading), names)
    return names


@pytest.fixture
def model() -> Model:
    refiner, base = ran("A refiner"), ran("A base")
    net = base["Mean"](base["Spec"]()).eval()
    light = np.linspace(0, 1, 5000, dtype=np.float32)[:, None]
    firing = calibrate_firing(light, light[:, 0], (light[:, 0] > 0.2).astype(np.float32))
    with torch.no_grad():
        net.reader.weight.fill_(1.0)
        net.reader.bias.fill_(0.0)
    return Model("lamps", GEOMETRY, (0.0,), (1.0,), net, refiner["Bright"](), firing, threshold=0.6, tau=0.5, window=1)


def night(seed: int = 0) -> tuple[NDArray[np.uint8], set[tuple[float, ...]]]:
    """Lamps of 8 px in the dark, no two of them neighbours, and their boxes."""
    rng = np.random.default_rng(seed)
    lit = rng.random((40, 50)) < 0.02
    lit[1:] &= ~lit[:-1]
    lit[:, 1:] &= ~lit[:, :-1]
    lit[1:, 1:] &= ~lit[:-1, :-1]
    lit[1:, :-1] &= ~lit[:-1, 1:]
    pixels = np.where(np.kron(lit, np.ones((8, 8), bool)), 230, rng.integers(0, 30, (320, 400))).astype(np.uint8)
    return pixels, {(8.0 * y, 8.0 * x, 8.0 * y + 8, 8.0 * x + 8) for y, x in np.argwhere(lit).tolist()}


def test_a_refiner_and_a_base_of_others_find_what_they_seek(model: Model, tmp_path: Path) -> None:
    pixels, lamps = night()
    again = load_model(model.save(tmp_path / "lamps.c2f"))
    assert str(again) == str(model)
    assert "lamps (bright): lamp" in str(again)
    assert again.refiner is not model.refiner
    for budget in (None, 1.0):
        found = analyze(pixels, again, budget=budget, precision="fp32")
        assert {region.full_box for region in found.regions} == lamps
        assert {region.label for region in found.regions} == {"lamp"}
        assert found.complete
        assert found.cost.refine_macs == 256 * found.cost.cells_refined
        assert found.provenance["model"]["task"] == "bright"
    assert analyze(pixels, model, precision="fp32").cost.cells_refined < 0.2 * 20 * 25
    assert analyze(np.repeat(pixels[..., None], 3, axis=2), model).regions == found.regions  # it is given grey
    assert analyze(pixels, model, recall=0.9).audit is not None
    with pytest.raises(ValueError, match='got a refiner of the kind "bright"'):
        with_features(Patches(64, np.array([(0, 0)])), open_image(pixels), model, None)  # type: ignore[arg-type]


def test_a_dry_run_measures_any_refiner(model: Model, tmp_path: Path) -> None:
    path = model.save(tmp_path / "lamps.c2f")
    cv2.imwrite(str(tmp_path / "night.png"), night()[0])
    items = find_items(tmp_path / "night.png")
    expected = estimate(BatchRequest(items, tmp_path / "out", path))
    assert expected.macs_per_second > 0
    assert expected.images[0].most_macs > 320 * 400


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:hardly anything was found")
def test_a_base_of_others_is_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in SMALL:
        monkeypatch.setattr(sys.modules[f"coarse2fine.fitting.{module}"], name, value)
    ran("A base")
    pixels, lamps = night()
    boxes = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]},
            "properties": {"classification": {"name": "lamp"}},
        }
        for y0, x0, y1, x1 in lamps
    ]
    known = {"type": "FeatureCollection", "features": boxes}
    options: dict[str, Any] = {"base": "mean:4", "steps": 10, "progress": False, "specialists": None}
    with pytest.raises(ValueError, match=r"mean:4 has cells of 4 px, expected 8 px in Geometry"):
        fit(pixels, known, geometry=Geometry(8, 1, 1), **options)
    found = fit(pixels, known, geometry=Geometry(8, 2, 1), **{**options, "steps": 40})
    assert str(found.base.spec) == "mean:4"
    assert found.provenance["base"] == "mean:4"
    again = load_model(found.save(tmp_path / "mean.c2f"))
    assert analyze(pixels, again, precision="fp32").regions == analyze(pixels, found, precision="fp32").regions
    with pytest.raises(ValueError, match="no base of the kind mine is registered here"):
        fit(pixels, known, **{**options, "base": "mine:4"})


PACKAGE = """
from coarse2fine import {function}
{code}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with both, whose entry points name them."""
    folder = tmp_path / "site"
    (folder / "night-1.0.dist-info").mkdir(parents=True)
    (folder / "night-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: night\nVersion: 1.0\n")
    (folder / "night-1.0.dist-info" / "entry_points.txt").write_text(
        "[coarse2fine.refiners]\ndusk = night_refiner\n[coarse2fine.bases]\nmoon = night_base\nsilent = night_nothing\n"
    )
    refiner = code("A refiner").replace('"bright"', '"dusk"')
    (folder / "night_refiner.py").write_text(refiner)
    (folder / "night_base.py").write_text(code("A base").replace('"mean', '"moon'))
    (folder / "night_nothing.py").write_text("")
    monkeypatch.syspath_prepend(folder)
    for name in ("night_refiner", "night_base", "night_nothing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def test_a_package_is_asked_for_what_a_file_names(package: Path, model: Model, tmp_path: Path) -> None:
    refiner, base = (ModuleType(name) for name in ("refiner", "base"))
    for module in (refiner, base):
        exec((package / f"night_{module.__name__}.py").read_text().partition("c2f.register")[0], vars(module))
    net = base.Mean(base.Spec()).eval()
    net.load_state_dict(model.base.state_dict())
    path = replace(model, base=net, refiner=refiner.Bright()).save(tmp_path / "dusk.c2f")
    assert "night_refiner" not in sys.modules
    again = load_model(path)
    assert {"night_refiner", "night_base"} <= sys.modules.keys()
    assert type(again.refiner).__module__ == "night_refiner"
    assert str(again.base.spec) == "moon:4"
    pixels, lamps = night(1)
    assert {region.full_box for region in analyze(pixels, again).regions} == lamps


def test_what_no_package_has_is_refused(package: Path, model: Model, tmp_path: Path) -> None:
    class Unknown(type(model.refiner)):  # type: ignore[misc]
        kind = "unheard"

    with pytest.raises(ModelError, match="no refiner of the kind unheard is registered here; install the package"):
        load_model(replace(model, refiner=Unknown()).save(tmp_path / "unheard.c2f"))
    for text in ("unheard:4", "silent:4"):
        with pytest.raises(ValueError, match="no base of the kind"):
            unfitted(1, text)
    with pytest.raises(ValueError, match="expected an identifier"):
        register_base("4/2", unfitted, unfitted)  # type: ignore[arg-type]
    for parse, build in ((unfitted, None), ("timm", unfitted)):
        with pytest.raises(TypeError, match="expected two functions, parse"):
            register_base("named", parse, build)  # type: ignore[arg-type]


def test_a_refiner_must_fit_the_geometry(model: Model) -> None:
    with pytest.raises(ValueError, match="the refiner's stride 8 at 1/1 does not make 16 px at 1/1"):
        replace(model, geometry=replace(GEOMETRY, fine=1))


@pytest.mark.parametrize(
    ("kind", "load", "error"), [("mine", "not a function", TypeError), ("", print, ValueError), (3, print, ValueError)]
)
def test_only_named_functions_are_registered_as_refiners(kind: Any, load: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="expected"):
        register_refiner(kind, load)
