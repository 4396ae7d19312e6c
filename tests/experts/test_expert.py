"""Experts by text, in model files, and in reports."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from coarse2fine import Analysis, ExpertError, ModelError, analyze, expert, load_model
from coarse2fine.bundle import packed
from coarse2fine.experts.expert import Expert
from coarse2fine.model_file import read_model_file
from coarse2fine.report.image_page import write_report
from coarse2fine.report.viewer_tiles import Tiles
from tests.experts.scenes import LABELS, disc_expert, model_of, scene
from tests.experts.test_refiner import polygons

PACKAGE = """
from pathlib import Path

import numpy as np
from scipy import ndimage

with (Path(__file__).parent / "imported").open("a") as file:
    file.write("x")


def boxes(tile, floor):
    parts, count = ndimage.label(tile[..., 0] > floor, structure=np.ones((3, 3)))
    rows, means = [], ndimage.mean(tile[..., 0], parts, range(1, count + 1))
    for mean, (ys, xs) in zip(means, ndimage.find_objects(parts)):
        rows.append((xs.start, ys.start, xs.stop, ys.stop, 0.5 + mean / 512, int(mean > 180)))
    return np.array(rows, float).reshape(-1, 6)


class Discs:
    def __init__(self, floor=100, mode="discs"):
        self.floor = floor
        assert mode == "discs"

    def __call__(self, pixels):
        return [boxes(tile, self.floor) for tile in pixels]


def build(**options):
    return Discs(**options)


def find(pixels):
    return [boxes(tile, 100) for tile in pixels]


def vectors(pixels):
    return pixels.reshape(len(pixels), -1)[:, ::400].astype(np.float32)


def interest(found):
    return found.max(axis=1) / 255
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module ``discs_here`` that counts its imports in a file beside it."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "discs_here.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(home)
    monkeypatch.setenv("PYTHONPATH", f"{home}:{Path.cwd()}")
    yield home / "imported"
    sys.modules.pop("discs_here", None)


def named(text: str = "discs_here:build", **options: Any) -> Expert:
    usual: dict[str, Any] = {"tile": 64, "context": 8, "labels": LABELS, "batch": 8}
    return replace(expert(text, **(usual | options)), tile_macs=10**7)


def forget(package: Path) -> None:
    sys.modules.pop("discs_here", None)
    package.unlink()


@pytest.mark.parametrize("text", ["discs_here:build", "discs_here:Discs", "discs_here:find"])
def test_functions_of_a_package(package: Path, text: str) -> None:
    image = scene(300, 200)
    wanted = analyze(image, model_of(disc_expert()), budget=1.0).regions
    assert analyze(image, model_of(named(text)), budget=1.0).regions == wanted
    assert package.read_text() == "x"


def test_a_model_file_imports_nothing(package: Path, tmp_path: Path) -> None:
    image = scene(300, 200)
    model = model_of(named(floor=110))
    wanted = analyze(image, model, budget=0.5)
    path = model.save(tmp_path / "m.c2f")
    forget(package)
    loaded = load_model(path)
    assert loaded.expert == model.expert
    assert "discs_here:build" in str(loaded)
    with pytest.raises(ExpertError, match="discs_here:build"):
        analyze(image, path, budget=0.5)
    assert not package.exists()
    assert "discs_here" not in sys.modules
    again = analyze(image, path, budget=0.5, expert="discs_here:build")
    assert again.regions == wanted.regions
    assert package.read_text() == "x"
    assert load_model(loaded.with_expert("discs_here:build").save(tmp_path / "n.c2f")).expert == model.expert


def test_a_model_file_chooses_no_code_and_no_files(package: Path, tmp_path: Path) -> None:
    """Only numbers are taken from the file; the message says what to give otherwise."""
    image = scene(200, 200)
    model = model_of(named(mode="discs", floor=110))
    path = model.save(tmp_path / "m.c2f")
    with pytest.raises(ExpertError, match="sets mode of the expert") as caught:
        analyze(image, path, expert="discs_here:build")
    text = str(caught.value).rpartition("as ")[2].strip("'")
    assert text == 'discs_here:build {"floor": 110, "mode": "discs"}'
    wanted = analyze(image, model, budget=1.0)
    assert analyze(image, path, budget=1.0, expert=text).regions == wanted.regions
    assert analyze(image, path, budget=1.0, expert=model.expert).regions == wanted.regions
    with pytest.raises(ExpertError, match="JSON object"):
        analyze(image, path, expert="discs_here:build {mode}")
    other = model_of(named("discs_here:vectors", kind="vectors", labels=["a"], interest="discs_here:interest"))
    other.save(path)
    forget(package)
    with pytest.raises(ExpertError, match="sets interest"):
        analyze(image, path, expert="discs_here:vectors")
    assert not package.exists()
    text = 'discs_here:vectors {"interest": "discs_here:interest"}'
    assert analyze(image, path, expert=text, budget=1.0).regions


def test_another_expert_is_refused(package: Path, tmp_path: Path) -> None:
    model = model_of(named())
    path = model.save(tmp_path / "m.c2f")
    image = scene(100, 100)
    (package.parent / "discs_here.py").write_text(PACKAGE + "\n# changed\n")
    sys.modules.pop("discs_here", None)
    with pytest.raises(ExpertError, match="has the hash"):
        analyze(image, path, expert="discs_here:build")
    for change in ({"tile": 32}, {"context": 4}, {"downsample": 2}, {"labels": ["a", "b"]}):
        given = disc_expert(**change)
        with pytest.raises(ExpertError, match=next(iter(change))):
            analyze(image, path, expert=given)
    with pytest.raises(ModelError, match="not fitted with an expert"):
        analyze(image, "digits", expert="discs_here:build")
    for text in ("discs_nowhere:build", "discs_here:nothing", "discs_here"):
        with pytest.raises(ExpertError, match=text.partition(":")[0]):
            analyze(image, path, expert=text)


@pytest.mark.parametrize(
    "options",
    [
        {"tile": 0},
        {"tile": 10**6},
        {"tile": 64, "kind": "map", "cell": 7},
        {"context": -1},
        {"downsample": 0},
        {"confidence": 0.0},
        {"confidence": float("nan")},
        {"overlap": 0.0},
        {"overlap": float("nan")},
        {"most": 0},
        {"batch": -1},
        {"kind": "points"},
        {"kind": "vectors"},
        {"areas": True},
        {"wrong": 1},
    ],
)
def test_parameters_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ExpertError):
        expert(lambda pixels: pixels, **options)


def change(path: Path, target: Path, **more: Any) -> Path:
    """A copy of a model file with other values in the description of its expert."""
    arrays, text = read_model_file(path)
    target.write_bytes(packed(arrays, {**text, "expert": {**text["expert"], **more}}))
    return target


JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    "",
    "x",
    [],
    [1],
    {},
    {"a": 1},
    [["a"]],
    [{"name": "a"}, {"name": 3}],
]


def test_malformed_descriptions(tmp_path: Path) -> None:
    """Any value of any entry gives a model that can be used, or a ModelError."""
    path = model_of(disc_expert()).save(tmp_path / "m.c2f")
    text = read_model_file(path)[1]["expert"]
    rng = random.Random(0)
    for name in text:
        for junk in JUNK:
            bad = change(path, tmp_path / "bad.c2f", **{name: junk})
            try:
                model = load_model(bad)
            except ModelError:
                continue
            assert str(model)
            try:
                analyze(scene(100, 100), model, expert=disc_expert(), budget=1.0)
            except ModelError:
                continue
    for _ in range(40):
        try:
            load_model(change(path, tmp_path / "bad.c2f", **{n: rng.choice(JUNK) for n in rng.sample(list(text), 2)}))
        except ModelError:
            continue
    arrays, whole = read_model_file(path)
    for without in ({k: v for k, v in whole.items() if k != "expert"}, {**whole, "expert": []}):
        (tmp_path / "bad.c2f").write_bytes(packed(arrays, without))
        with pytest.raises(ModelError):
            load_model(tmp_path / "bad.c2f")


def test_info_of_a_model_file(package: Path, tmp_path: Path) -> None:
    """A printed model names its expert, its tiles and its cost, and imports nothing."""
    path = model_of(named()).save(tmp_path / "m.c2f")
    forget(package)
    text = str(load_model(path))
    assert "expert discs_here:build: tiles of 64 px with 8 px of context" in text
    assert "0.01 GMAC a tile" in text
    assert not package.exists()


@pytest.fixture(scope="module", params=["boxes", "outlines", "areas"])
def analysis(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    from tests.experts.test_finds import maps_of  # noqa: PLC0415 (fixtures of that module are not needed)

    kinds: dict[str, Any] = {
        "boxes": disc_expert,
        "outlines": lambda: disc_expert(polygons),
        "areas": lambda: disc_expert(maps_of, kind="map", cell=4),
    }
    made = kinds[request.param]()
    path = tmp_path_factory.mktemp("image") / "scene.png"
    import cv2  # noqa: PLC0415

    cv2.imwrite(str(path), scene(300, 260, 50))
    return analyze(path, model_of(made), budget=1.0)


def test_reports_and_exporters(analysis: Analysis, tmp_path: Path) -> None:
    folder = tmp_path / "result"
    analysis.save(folder)
    again = Analysis.load(folder)
    assert again.regions == analysis.regions
    assert again.complete
    features = json.loads(analysis.to(tmp_path / "a.geojson").read_text())["features"]
    assert len(features) == len(analysis.regions)
    ring = np.array(features[0]["geometry"]["coordinates"][0])
    region = next(r for r in analysis.regions)
    assert ring[:, ::-1].min(axis=0) == pytest.approx(region.full_box[:2], abs=0.02)
    coco = json.loads(analysis.to(tmp_path / "a.coco.json").read_text())
    assert len(coco["annotations"]) == len(analysis.regions)
    assert {each["name"] for each in coco["categories"]} == set(LABELS)
    assert len(analysis.tiles) == len(analysis.plan)
    page = write_report(analysis, tmp_path / "report.html")
    assert "bright" in page.read_text()
    assert "bright" in analysis._repr_html_()
    with h5py.File(analysis.to(tmp_path / "tiles.h5")) as file:
        assert len(file["coords"]) > 0
    with pytest.raises(ValueError, match="built-in refine net"):
        analysis.to_h5(tmp_path / "tiles.h5", model_of(disc_expert()), tile=64)
    for suffix in (".csv", ".parquet", ".png", ".geojson.gz", ".ome.zarr"):
        assert analysis.to(tmp_path / f"b{suffix}").exists()
    tiles = Tiles(again)
    shown = tiles.tile("regions", tiles.last_level, 0, 0)
    assert shown is not None
    assert shown.startswith(b"\x89PNG")
    y0, x0, y1, x1 = region.full_box
    assert "bright" in json.dumps(tiles.at((y0 + y1) / 2, (x0 + x1) / 2)) or region.label != "bright"
