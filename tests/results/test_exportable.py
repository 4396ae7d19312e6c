"""Finds in the objects of other libraries, checked by these libraries where they are installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from coarse2fine import Analysis, ImageError, analyze, open_image
from coarse2fine.model import Model
from coarse2fine.region import Region
from coarse2fine.tiling.geometry import GeoReference

MakeImage = Callable[..., NDArray[np.uint8]]

TRIANGLE = Region("right", 0.9, (100, 40, 140, 80), ((100.0, 40.0), (140.0, 40.0), (140.0, 80.0)), fired=("a", "b"))
BOX = Region("left", 0.75, (10, 20, 30, 60))
OVER_BOX = Region("left", 0.5, (20, 50, 40, 70))
THIN = Region("other", 0.25, (50.1, 10.0, 50.2, 14.0))
FINDS = (TRIANGLE, BOX, OVER_BOX, THIN)
UTM = GeoReference((10.0, 0.0, 500_000.0, 0.0, -10.0, 4_000_000.0), "EPSG:32618", "meter")


@pytest.fixture
def analysis(make_image: MakeImage, detector: Model) -> Iterator[Analysis]:
    """Known finds in an image of 160 x 200 pixels."""
    with analyze(make_image(160, 200), detector, budget=0.5, precision="fp32") as found:
        yield replace(found, regions=FINDS)


@pytest.fixture
def empty(analysis: Analysis) -> Analysis:
    return replace(analysis, regions=())


def test_a_geodataframe_holds_each_find_in_pixels(analysis: Analysis, empty: Analysis) -> None:
    geopandas = pytest.importorskip("geopandas")
    frame = analysis.to_geodataframe()
    assert isinstance(frame, geopandas.GeoDataFrame)
    assert frame.crs is None
    assert frame.label.tolist() == ["right", "left", "left", "other"]
    assert frame.score.tolist() == [0.9, 0.75, 0.5, 0.25]
    assert frame.fired.tolist() == ["a; b", "", "", ""]
    assert frame.area.tolist() == pytest.approx([800, 800, 400, 0.4])
    assert frame.bounds.iloc[0].tolist() == [40, 100, 80, 140]
    assert frame.dissolve("label").area["left"] == pytest.approx(1100)  # the two overlap by 10 x 10
    nothing = empty.to_geodataframe()
    assert list(nothing.columns) == list(frame.columns)
    assert nothing.dtypes.astype(str).tolist() == frame.dtypes.astype(str).tolist()


def test_a_geodataframe_on_the_map_is_the_file_that_gis_programs_open(analysis: Analysis, tmp_path: Path) -> None:
    geopandas = pytest.importorskip("geopandas")
    with pytest.raises(ValueError, match="array is not georeferenced"):
        analysis.to_geodataframe(world=True)
    analysis.image.geo = UTM
    frame = analysis.to_geodataframe(world=True)
    read = geopandas.read_file(analysis.to_geojson(tmp_path / "w.geojson", world=True))
    assert frame.crs == read.crs == "EPSG:32618"
    assert frame.geometry.geom_equals(read.geometry).all()
    assert frame.label.tolist() == read.label.tolist()
    assert frame.to_crs("EPSG:4326").total_bounds == pytest.approx([-75, 36.1, -74.9, 36.2], abs=0.1)


def test_supervision_gets_boxes_scores_and_classes(analysis: Analysis, empty: Analysis) -> None:
    supervision = pytest.importorskip("supervision")
    found = analysis.to_supervision()
    assert found.mask is None
    assert found.xyxy[:2].tolist() == [[40, 100, 80, 140], [20, 10, 60, 30]]
    assert found.confidence == pytest.approx([0.9, 0.75, 0.5, 0.25])
    assert dict(zip(found["class_name"].tolist(), found.class_id.tolist(), strict=True)) == {
        "left": 0,
        "other": 1,
        "right": 2,
    }
    assert found[found.confidence > 0.6]["class_name"].tolist() == ["right", "left"]
    assert len(found.with_nms(0.01, class_agnostic=True)) == 3  # the boxes that overlap become one
    canvas = np.zeros((160, 200, 3), np.uint8)
    assert supervision.BoxAnnotator().annotate(canvas, found).any()
    nothing = empty.to_supervision(masks=True)
    assert len(nothing) == 0
    assert len(supervision.Detections.merge([nothing, analysis.to_supervision(masks=True)])) == 4


def test_supervision_gets_masks_if_asked(analysis: Analysis) -> None:
    supervision = pytest.importorskip("supervision")
    found = analysis.to_supervision(masks=True)
    assert found.mask.shape == (4, 160, 200)
    assert found.area.tolist() == [780, 800, 400, 4]  # of the triangle, centres on the slope are outside
    inclusive = supervision.mask_to_xyxy(found.mask)
    assert inclusive[1:3].tolist() == (found.xyxy[1:3] - [0, 0, 1, 1]).tolist()
    corners = np.array([[40, 100], [40, 140], [80, 140]])
    drawn = supervision.polygon_to_mask(corners, (200, 160)).astype(bool)
    assert not (found.mask[0] & ~drawn).any()


def test_masks_beyond_memory_are_refused(analysis: Analysis) -> None:
    pytest.importorskip("supervision")
    many = replace(analysis, regions=(BOX,) * 140_000)
    with pytest.raises(ValueError, match="leave out masks"):
        many.to_supervision(masks=True)


def test_coco_is_a_dict_or_the_same_as_a_file(analysis: Analysis, empty: Analysis, tmp_path: Path) -> None:
    data = analysis.to_coco()
    assert data == json.loads(analysis.to_coco(tmp_path / "finds.json").read_text("utf-8"))
    assert [each["id"] for each in data["annotations"]] == [1, 2, 3, 4]
    assert [each["area"] for each in data["annotations"]] == pytest.approx([800, 800, 400, 0.4])
    assert empty.to_coco()["annotations"] == []


@pytest.mark.filterwarnings("ignore")  # it is older than NumPy 2
def test_pycocotools_reads_the_dict_and_scores_it_perfect_against_itself(analysis: Analysis) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    data = replace(analysis, regions=FINDS[:3]).to_coco()
    truth = coco.COCO()
    truth.dataset = data
    truth.createIndex()
    assert truth.annToMask(data["annotations"][1]).sum() == pytest.approx(800, rel=0.1)
    found = truth.loadRes([{k: v for k, v in each.items() if k != "id"} for each in data["annotations"]])
    scored = evaluation.COCOeval(truth, found, "segm")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    assert scored.stats[0] == pytest.approx(1)


def layers_of(analysis: Analysis) -> dict[str, tuple[Any, dict[str, Any], str]]:
    layers = analysis.to_napari_layers()
    assert all(len(layer) == 3 for layer in layers)
    return {arguments["name"]: (data, arguments, kind) for data, arguments, kind in layers}


def test_layers_are_image_maps_and_finds(analysis: Analysis, empty: Analysis) -> None:
    layers = layers_of(analysis)
    assert {name: kind for name, (_, _, kind) in layers.items()} == {
        "array": "image",
        "interest": "image",
        "refined": "labels",
        "finds": "shapes",
    }
    pixels, arguments, _ = layers["array"]
    np.testing.assert_array_equal(np.asarray(pixels), np.asarray(analysis.image.array()[:]))
    assert (arguments["rgb"], arguments["multiscale"]) == (True, False)
    outlines, arguments, _ = layers["finds"]
    assert outlines[1].tolist() == [[9.5, 19.5], [9.5, 59.5], [29.5, 59.5], [29.5, 19.5]]
    assert arguments["features"]["label"] == ["right", "left", "left", "other"]
    assert layers_of(empty)["finds"][0] == []
    assert "interest" not in layers_of(replace(analysis, interest=np.zeros((0, 0), np.float32)))
    analysis.image.close()
    with pytest.raises(ImageError, match="closed"):
        analysis.to_napari_layers()


@pytest.mark.parametrize("channels", [1, 3])
def test_levels_are_read_when_they_are_shown(
    tmp_path: Path, make_image: MakeImage, detector: Model, grey_detector: Model, channels: int
) -> None:
    pixels = make_image(512, 640, channels)
    model, kind = (detector, "rgb") if channels == 3 else (grey_detector, "minisblack")
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels, tile=(128, 128), photometric=kind, subifds=1)
        file.write(cv2.resize(pixels, (320, 256)), tile=(128, 128), photometric=kind, subfiletype=1)
    with open_image(tmp_path / "a.tif") as image, analyze(image, model, cells=50) as analysis:
        before = image.stats.chunks
        levels, arguments, _ = layers_of(analysis)["a"]
        assert image.stats.chunks == before
        assert (arguments["multiscale"], arguments["rgb"]) == (True, channels == 3)
        assert [level.shape[:2] for level in levels] == [(512, 640), (256, 320)]
        np.testing.assert_array_equal(levels[0][130:150, 300:320].compute(), pixels[130:150, 300:320])


@pytest.mark.filterwarnings("ignore")  # its own imports are deprecated
def test_napari_makes_the_layers_and_puts_them_in_place(analysis: Analysis, empty: Analysis) -> None:
    napari = pytest.importorskip("napari")
    layers = {name: napari.layers.Layer.create(*layer) for name, layer in layers_of(analysis).items()}
    # All cover the image, from the centre of the first pixel or cell to that of the last.
    assert layers["array"].extent.world.tolist() == [[0, 0], [159, 199]]
    for name in ("interest", "refined"):
        assert layers[name].extent.world.tolist() == [[3.5, 3.5], [155.5, 195.5]]
    refined = layers["refined"]
    refined.visible = True
    for y, x in np.argwhere(analysis.refined)[:1].tolist() + np.argwhere(~analysis.refined)[:1].tolist():
        corner = np.array([y, x]) * analysis.cell
        for inside in (corner - 0.4, corner + analysis.cell - 0.6):
            assert refined.get_value(inside, world=True) == analysis.refined[y, x]
    finds = layers["finds"]
    assert finds.nshapes == 4
    assert finds.features["label"].tolist() == ["right", "left", "left", "other"]
    assert finds.to_masks((160, 200))[1].sum() == pytest.approx(800, rel=0.1)
    assert [napari.layers.Layer.create(*layer).name for layer in layers_of(empty).values()][-1] == "finds"


@pytest.mark.parametrize(
    ("package", "convert"),
    [("geopandas", lambda a: a.to_geodataframe()), ("supervision", lambda a: a.to_supervision())],
)
def test_a_missing_package_names_its_extra(
    analysis: Analysis, monkeypatch: pytest.MonkeyPatch, package: str, convert: Callable[[Analysis], object]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"coarse2fine\[{package}\]"):
        convert(analysis)


def test_reprs_are_one_short_line(analysis: Analysis, detector: Model) -> None:
    assert repr(analysis).startswith("<Analysis 'array': 4 found, ")
    assert repr(replace(analysis, complete=False)).count("incomplete") == 1
    assert repr(detector) == "<Model 'tiny' (detect): 2 classes, cells of 8 px>"
    strange = replace(detector, name="a\nb\x1b[2J")
    assert len(repr(analysis)) < 100
    assert repr(strange).isprintable()
