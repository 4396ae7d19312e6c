"""Annotations: reading GeoJSON, pairing files, and what is said when something is wrong."""

from __future__ import annotations

import gzip
import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon, box, mapping, shape

from coarse2fine.annotations.read import AnnotationError, expand_paths, match_annotations, read_annotations
from coarse2fine.region import Region
from coarse2fine.results.geojson import write_world_geojson
from coarse2fine.tiling.geometry import GeoReference

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def feature(geometry: Any, label: Any = "cell", **properties: Any) -> dict[str, Any]:
    if label is not None:
        properties["classification"] = {"name": label, "color": [1, 2, 3]}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def collection(*features: dict[str, Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


def point(x: float, y: float) -> dict[str, Any]:
    return {"type": "Point", "coordinates": [x, y]}


def touch(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


# Reading


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("form", ["collection", "list", "feature"])
def test_every_form_of_file_reads_the_same(tmp_path: Path, form: str, compress: bool) -> None:
    one = feature(point(7, 3))
    payload: Any = {"collection": collection(one), "list": [one], "feature": one}[form]
    content = json.dumps(payload).encode()
    path = tmp_path / ("a.geojson.gz" if compress else "a.geojson")
    path.write_bytes(gzip.compress(content, mtime=0) if compress else content)
    annotations = read_annotations(path)
    assert annotations.path == path
    assert annotations.labels == ("cell",)
    assert annotations.objects[0].full_bounds == (3.0, 7.0, 3.0, 7.0)
    assert annotations.objects[0].is_point
    assert not annotations.objects[0].is_box
    assert read_annotations(str(path)) == annotations
    assert read_annotations(payload).objects == annotations.objects


def test_a_byte_order_mark_and_other_alphabets_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(collection(feature(point(1, 1), "细胞")), ensure_ascii=False), "utf-8-sig")
    assert read_annotations(path).labels == ("细胞",)


@given(st.lists(st.tuples(*[st.integers(0, 500)] * 2, *[st.floats(0.25, 500, width=32)] * 2), min_size=1, max_size=20))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_boxes_are_read_as_shapely_reads_them(boxes: list[tuple[int, int, float, float]]) -> None:
    polygons = [box(x, y, x + w, y + h) for x, y, w, h in boxes]
    objects = read_annotations(collection(*[feature(mapping(p)) for p in polygons])).objects
    for polygon, annotation in zip(polygons, objects, strict=True):
        assert annotation.geometry.equals(polygon)
        assert annotation.is_box
        assert annotation.full_bounds == tuple(polygon.bounds[i] for i in (1, 0, 3, 2))


@given(st.lists(st.tuples(*[st.integers(-30, 130)] * 2, *[st.integers(1, 60)] * 2), min_size=1, max_size=8))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_clipping_agrees_with_plain_arithmetic(boxes: list[tuple[int, int, int, int]]) -> None:
    height, width = 100, 90
    for x, y, w, h in boxes:
        expected = (max(y, 0), max(x, 0), min(y + h, height), min(x + w, width))
        payload = feature(mapping(box(x, y, x + w, y + h)))
        if expected[0] < expected[2] and expected[1] < expected[3]:
            assert read_annotations(payload, full_shape=(height, width)).objects[0].full_bounds == expected
        else:
            with pytest.raises(AnnotationError, match="lies outside the image"):
                read_annotations(payload, full_shape=(height, width))


def test_multipoints_come_apart_and_multipolygons_stay_whole() -> None:
    parts = {
        "type": "MultiPolygon",
        "coordinates": [mapping(box(0, 0, 2, 2))["coordinates"], mapping(box(5, 5, 9, 8))["coordinates"]],
    }
    annotations = read_annotations(
        collection(feature({"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]}), feature(parts, "b"))
    )
    assert [o.full_bounds for o in annotations.objects] == [(2, 1, 2, 1), (4, 3, 4, 3), (0, 0, 8, 9)]
    assert annotations.labels == ("b", "cell")
    assert not annotations.objects[2].is_box


def test_only_axis_aligned_rectangles_are_boxes() -> None:
    diamond = Polygon([(5, 0), (10, 5), (5, 10), (0, 5)])
    holed = Polygon(box(0, 0, 9, 9).exterior.coords, [box(3, 3, 4, 4).exterior.coords])
    extra_corner = Polygon([(0, 0), (4, 0), (9, 0), (9, 9), (0, 9)])
    objects = read_annotations(collection(*[feature(mapping(p)) for p in (diamond, holed, extra_corner)])).objects
    assert [o.is_box for o in objects] == [False, False, True]


def test_ignore_and_region_classes_are_areas_not_objects() -> None:
    area = mapping(box(0, 0, 50, 50))
    annotations = read_annotations(
        collection(feature(area, "Ignore*"), feature(area, "Region*"), feature(point(1, 1), "Ignored"))
    )
    assert annotations.labels == ("Ignored",)
    assert [len(annotations.ignored), len(annotations.regions), len(annotations.objects)] == [1, 1, 1]
    assert annotations.ignored[0].equals(box(0, 0, 50, 50))
    empty_scene = read_annotations(collection(feature(area, "Region*")))
    assert (empty_scene.objects, empty_scene.labels) == ((), ())
    with pytest.raises(AnnotationError, match=r"feature 1 of .* is a Point of class Ignore\*: expected an area"):
        read_annotations(feature(point(1, 1), "Ignore*"))


@pytest.mark.parametrize(
    ("properties", "label"),
    [
        ({"classification": {"name": " a ", "names": ["b"]}, "name": "c"}, "a"),
        ({"classification": {"names": ["CD3", "CD8"]}, "name": "Annotation 1"}, "CD3: CD8"),
        ({"classification": "a", "name": "b"}, "a"),
        ({"classification": None, "name": "b", "label": "c"}, "b"),
        ({"label": "c", "class": "d"}, "c"),
        ({"class": 7}, "7"),
    ],
)
def test_where_the_class_name_is_found(properties: dict[str, Any], label: str) -> None:
    assert read_annotations({"type": "Feature", "geometry": point(1, 1), "properties": properties}).labels == (label,)


def test_a_class_that_a_table_made_text_is_read_as_qupath_meant_it() -> None:
    square = mapping(box(0, 0, 10, 10))

    def as_text(name: str) -> dict[str, Any]:
        properties = {"objectType": "annotation", "classification": json.dumps({"name": name, "colorRGB": -3})}
        return {"type": "Feature", "geometry": square, "properties": {**properties, "measurements": '{"a": 2}'}}

    found = read_annotations(collection(as_text("tumor"), as_text("Ignore*"), as_text("Region*")))
    assert found.labels == ("tumor",)
    assert found.objects[0].measurements == {"a": 2.0}
    assert [len(found.ignored), len(found.regions)] == [1, 1]


def test_where_no_class_is_named_all_are_objects() -> None:
    found = read_annotations(collection(feature(point(1, 1), None), feature(point(2, 2), "")))
    assert found.labels == ("object",)
    assert len(found.objects) == 2
    assert "no annotation has a class; all are taken as 'object'" in found.notes[0]
    assert read_annotations(feature(point(1, 1), " ", name="Annotation 1")).labels == ("object",)
    assert read_annotations({"type": "Feature", "geometry": point(1, 1), "properties": None}).labels == ("object",)


def test_what_cannot_be_used_is_left_out_and_said() -> None:
    line = {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}
    odd = [feature(None), feature(line), feature({"type": "Polygon", "coordinates": []}), feature(point(1, 1), None)]
    good = [feature(point(i, i)) for i in range(5)]
    found = read_annotations(collection(*good, *odd, feature(point(200, 5))), full_shape=(100, 90))
    assert [o.full_bounds[0] for o in found.objects] == [0, 1, 2, 3, 4]
    notes = "\n".join(found.notes)
    for number, reason in ((6, "has no geometry"), (7, "LineString"), (8, "an empty Polygon"), (9, "has no class")):
        assert f"left out 1 of 10, feature {number}: " in notes
        assert reason in notes
    assert "feature 10: lies outside the image" in notes
    with pytest.raises(AnnotationError, match=r"feature 1 of .* has no geometry.*none of 3 can be used"):
        read_annotations(collection(*odd[:3]))


def test_what_only_holds_others_is_no_object() -> None:
    tissue, core, cells = mapping(box(0, 0, 90, 90)), mapping(box(0, 0, 80, 80)), [point(i, i) for i in range(5, 9)]
    parent = feature(tissue, None, objectType="annotation", name="Annotation 1")
    frame = feature(core, None, objectType="TMA core", name="A-1")
    classed = [feature(place, "cell", objectType="detection") for place in cells]
    assert read_annotations(collection(parent, frame, *classed)).labels == ("cell",)
    unclassed = [feature(place, None, objectType="cell") for place in cells]
    found = read_annotations(collection(parent, frame, *unclassed))
    assert [o.is_point for o in found.objects] == [True] * 4
    assert any("feature 1: has no class and only holds others" in note for note in found.notes)


def test_only_what_is_an_object_without_a_class_is_told_to_get_one() -> None:
    parent = feature(mapping(box(0, 0, 90, 90)), None, objectType="annotation")
    cell = feature(mapping(box(5, 5, 9, 9)), "cell", objectType="annotation")
    lone = feature(mapping(box(95, 95, 99, 99)), None, objectType="annotation")
    found = read_annotations(collection(parent, cell, lone))
    assert found.labels == ("cell",)
    assert [note.partition(": ")[2] for note in found.notes] == [
        "left out 1 of 3, feature 1: has no class and only holds others",
        "left out 1 of 3, feature 3: has no class; give it one (in QuPath: Set class)",
    ]
    elsewhere = read_annotations(collection(feature(point(1, 1)), feature(mapping(box(0, 0, 9, 9)), None)))
    assert elsewhere.notes[0].endswith("feature 2: has no class; give it one")


def test_areas_of_the_special_names_in_any_case() -> None:
    area = mapping(box(0, 0, 50, 50))
    found = read_annotations(collection(feature(area, "ignore*"), feature(area, "REGION*"), feature(point(1, 1))))
    assert [found.labels, len(found.ignored), len(found.regions)] == [("cell",), 1, 1]
    with pytest.raises(AnnotationError, match=r"feature 1 of .* is a Point of class Ignore\*: expected an area"):
        read_annotations(feature(point(1, 1), "ignore*"))
    plain = read_annotations(collection(feature(area, "region"), feature(point(1, 1))))
    assert "'region' is taken as a class of objects; the area that QuPath means is 'Region*'" in plain.notes[0]


def test_areas_without_the_star_are_told() -> None:
    found = read_annotations(collection(feature(mapping(box(0, 0, 9, 9)), "Ignore"), feature(point(1, 1))))
    assert found.labels == ("Ignore", "cell")
    assert "'Ignore' is taken as a class of objects; the area that QuPath means is 'Ignore*'" in found.notes[0]


# In the image's own coordinate reference system

UTM = GeoReference((10.0, 0.0, 500_000.0, 0.0, -10.0, 4_000_000.0), "EPSG:32618", "meter")
DEGREES = GeoReference((1e-3, 0.0, 10.0, 0.0, -1e-3, 50.0), "EPSG:4326", "degree")


OWN = GeoReference((3.0, 1.0, 7.0, -1.0, 3.0, 9.0), None, "meter")


@pytest.mark.parametrize(("geo", "named"), [(UTM, True), (UTM, False), (DEGREES, True), (DEGREES, False), (OWN, True)])
def test_world_coordinates_come_back_as_the_pixels_they_were(tmp_path: Path, geo: GeoReference, named: bool) -> None:
    boxes = [(100.0, 20.0, 130.0, 60.0), (900.0, 500.0, 990.0, 510.0)]
    regions = [Region("a", 0.5, full_box) for full_box in boxes]
    path = write_world_geojson(tmp_path / "a.geojson", regions, geo)
    if not named:
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "crs"}))
    found = read_annotations(path, full_shape=(1000, 1000), geo=geo)
    for full_box, annotation in zip(boxes, found.objects, strict=True):
        assert annotation.full_bounds == pytest.approx(full_box, abs=1e-5)
    assert "converted to pixels of the image" in found.notes[0]


def test_another_coordinate_reference_system_is_refused_in_words() -> None:
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
    with pytest.raises(AnnotationError, match="is in EPSG:4326, but its image is in EPSG:32618; export it in"):
        read_annotations({**collection(feature(point(10.1, 49.9))), "crs": crs}, full_shape=(999, 999), geo=UTM)
    pixels = read_annotations(collection(feature(point(10, 49))), full_shape=(999, 999), geo=UTM)
    assert not pixels.notes
    assert pixels.objects[0].full_bounds == (49, 10, 49, 10)


def lon_lat_file(*, points: bool = False) -> dict[str, Any]:
    """Ten fields of 50 m, or their corners, 100 m apart, in degrees near Greenwich."""
    places = [(0.3 + 0.001 * i, 51.4) for i in range(10)]
    drawn = [point(x, y) if points else mapping(box(x, y, x + 7e-4, y + 5e-4)) for x, y in places]
    return collection(*[feature(each, "field") for each in drawn])


@pytest.mark.parametrize("points", [False, True])
def test_degrees_on_an_image_in_meters_are_refused_and_pixels_are_not(points: bool) -> None:
    with pytest.raises(AnnotationError, match=r"longitudes and latitudes.* is in EPSG:32618; export it in EPSG:32618"):
        read_annotations(lon_lat_file(points=points), full_shape=(9999, 9999), geo=UTM)
    corner = [(i % 8 * 20, i // 8 * 20) for i in range(24)]  # pixels within the numbers of degrees
    drawn = [point(x, y) if points else mapping(box(x, y, x + 6, y + 4)) for x, y in corner]
    found = read_annotations(collection(*map(feature, drawn)), full_shape=(9999, 9999), geo=UTM)
    assert not found.notes
    sizes = (0, 0) if points else (4, 6)
    assert [o.full_bounds for o in found.objects] == [(y, x, y + sizes[0], x + sizes[1]) for x, y in corner]


def test_a_named_system_without_an_image_in_one_is_told_or_refused() -> None:
    def named(payload: dict[str, Any], system: str) -> dict[str, Any]:
        return {**payload, "crs": {"type": "name", "properties": {"name": f"urn:ogc:def:crs:{system}"}}}

    pixels = collection(feature(mapping(box(10, 10, 40, 40))))
    found = read_annotations(named(pixels, "EPSG::32618"), full_shape=(99, 99))
    assert [o.full_bounds for o in found.objects] == [(10, 10, 40, 40)]
    assert "says that it is in EPSG:32618, but its image has no world coordinates: taken as pixels" in found.notes[0]
    meters = named(collection(feature(mapping(box(5e5, 4e6, 5e5 + 50, 4e6 + 50)))), "EPSG::32618")
    with pytest.raises(AnnotationError, match=r"is in EPSG:32618, but .*lies outside the image; export it in pixels"):
        read_annotations(meters, full_shape=(99, 99))
    with pytest.raises(AnnotationError, match=r"is in EPSG:4326, but .*would be smaller than one; export it in pixels"):
        read_annotations(named(lon_lat_file(), "OGC:1.3:CRS84"), full_shape=(99, 99))


def test_measurements_of_old_and_new_kind() -> None:
    new = {"confidence": 3, "text": "high", "flag": True, "none": None, "nan": float("nan")}
    old = [{"name": "confidence", "value": 3.0}]
    for found in (new, old):
        assert read_annotations(feature(point(1, 1), measurements=found)).objects[0].measurements == {"confidence": 3.0}
    assert read_annotations(feature(point(1, 1), measurements=None)).objects[0].measurements == {}


def test_a_polygon_that_crosses_itself_is_repaired() -> None:
    bow_tie = {"type": "Polygon", "coordinates": [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]]}
    with_spike = {
        "type": "Polygon",
        "coordinates": [[[0, 0], [4, 0], [9, 0], [4, 0], [4, 4], [0, 4], [0, 0]]],
    }
    first, second = (o.geometry for o in read_annotations(collection(feature(bow_tie), feature(with_spike))).objects)
    assert first.is_valid
    assert first.geom_type == "MultiPolygon"
    assert first.area == 50
    assert second.equals(box(0, 0, 4, 4))


def test_points_may_stand_on_the_border_and_no_further() -> None:
    on_border = collection(feature(point(0, 0)), feature(point(90, 100)))
    assert len(read_annotations(on_border, full_shape=(100, 90)).objects) == 2
    for x, y in [(-0.01, 5), (90.01, 5), (5, 100.01), (5, -0.01)]:
        with pytest.raises(AnnotationError, match="feature 1 of"):
            read_annotations(feature(point(x, y)), full_shape=(100, 90))


def test_an_annotation_outside_names_feature_place_and_likely_causes() -> None:
    far = [feature(mapping(box(95, 10 * i, 97, 10 * i + 10)), "nucleus") for i in (1, 2)]
    payload = collection(feature(point(1, 1)), *far)
    with pytest.raises(AnnotationError) as caught:
        read_annotations(payload, full_shape=(100, 90))
    assert str(caught.value) == (
        "feature 2 of the given annotations ('nucleus') lies outside the image, as do 1 of 2 others: x 95 to 97, "
        "y 10 to 20, but the image is 90 wide and 100 high. Was it annotated at another resolution or in other "
        "coordinates, are x and y swapped, or does it belong to another image?"
    )


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"type": "FeatureCollection"}, "is not GeoJSON with features: .* found FeatureCollection"),
        ({"type": "Polygon", "coordinates": []}, "found Polygon"),
        ({"features": []}, "is not GeoJSON with features: .* found a JSON object with features"),
        ({"hello": 1, "type": None}, "is not GeoJSON with features: .* found a JSON object with hello, type"),
        ({}, "is not GeoJSON with features: .* found an empty JSON object"),
        (("a",), "cannot read annotations from a tuple: expected the path of a file, or the dict or list"),
        ({"type": "FeatureCollection", "features": [3]}, "feature 1 of .* is not a GeoJSON Feature"),
        (
            feature({"type": "LineString", "coordinates": [[0, 0], [1, 1]]}),
            "feature 1 of .* has the geometry LineString, expected Point, MultiPoint, Polygon or MultiPolygon",
        ),
        (feature(None), "feature 1 of .* has no geometry"),
        (
            feature({"type": "GeometryCollection", "geometries": []}),
            "feature 1 of .* has the geometry GeometryCollection",
        ),
        (feature({"type": "Point", "coordinates": []}), "feature 1 of .* has an empty Point"),
        (feature({"type": "Polygon", "coordinates": []}), "feature 1 of .* has an empty Polygon"),
        (feature({"type": "MultiPoint", "coordinates": []}), "feature 1 of .* has an empty MultiPoint"),
        (feature({"type": "Polygon"}), "feature 1 of .* has coordinates that do not make a Polygon"),
        (feature({"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}), "do not make a Polygon"),
        (
            feature({"type": "Polygon", "coordinates": [[[0, 0], [1], [2, 2], [0, 0]]]}),
            "do not make a Polygon",
        ),
        (feature({"type": "Point", "coordinates": ["a", "b"]}), "do not make a Point"),
        (feature({"type": "Point", "coordinates": [1]}), "do not make a Point"),
        (feature(point(float("inf"), 1)), "feature 1 of .*a coordinate is not a finite number"),
        (
            feature({"type": "Polygon", "coordinates": [[[0, 0], [5, 5], [9, 9], [0, 0]]]}),
            "feature 1 of .* is a Polygon without area",
        ),
    ],
)
def test_what_is_wrong_is_said(payload: dict[str, Any], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_annotations(payload)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"label,x,y\n", "is not JSON"),
        (b"\xff\xd8\xff\xe0 JFIF", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"3", "is not GeoJSON with features: .* found JSON int"),
        (b"\x1f\x8b broken", "cannot read the annotation file"),
        (gzip.compress(b"[]" * 999, mtime=0)[:-9], "cannot read the annotation file"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.geojson"
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=message) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"there is no annotation file .*none\.geojson"):
        read_annotations(tmp_path / "none.geojson")
    with pytest.raises(AnnotationError, match="is a folder, expected an annotation file"):
        read_annotations(tmp_path)


def test_thousands_of_features_take_seconds(tmp_path: Path) -> None:
    boxes = [(i % 1000 * 30, i // 1000 * 30) for i in range(25_000)]
    corners = [[[x, y], [x + 20, y], [x + 20, y + 10], [x, y + 10], [x, y]] for x, y in boxes]
    path = tmp_path / "many.geojson"
    path.write_text(json.dumps(collection(*[feature({"type": "Polygon", "coordinates": [ring]}) for ring in corners])))
    start = time.process_time()
    annotations = read_annotations(path, full_shape=(750, 30_000))
    assert time.process_time() - start < 8  # 1 s on an idle machine
    assert len(annotations.objects) == 25_000
    assert annotations.objects[-1].full_bounds == (720, 29_970, 730, 29_990)


# Finding and pairing files


def test_expand_paths_finds_files_folders_globs_and_stores(tmp_path: Path) -> None:
    touch(tmp_path, "b.TIF", "a.png", "notes.txt", ".hidden.png", "deep/c.svs", "deep/d.txt")
    touch(tmp_path, "z.ome.zarr/zarr.json", "z.ome.zarr/0/zarr.json", "z.ome.zarr/0/c/0/0.png", "odd[1].png")
    top = [tmp_path / name for name in ("a.png", "b.TIF", "odd[1].png", "z.ome.zarr")]
    assert expand_paths(tmp_path) == sorted(top)
    assert expand_paths(tmp_path / "odd[1].png") == [tmp_path / "odd[1].png"]
    assert expand_paths(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    assert expand_paths(tmp_path / "z.ome.zarr") == [tmp_path / "z.ome.zarr"]
    assert expand_paths(str(tmp_path / "**" / "*.svs")) == [tmp_path / "deep" / "c.svs"]
    assert tmp_path / "z.ome.zarr" in expand_paths(tmp_path / "**")
    assert not [path for path in expand_paths(tmp_path / "**") if tmp_path / "z.ome.zarr" in path.parents]
    several = expand_paths([tmp_path / "deep", tmp_path / "a.png", str(tmp_path / "*.png")])
    assert several == sorted([tmp_path / "deep" / "c.svs", tmp_path / "a.png", tmp_path / "odd[1].png"])


@pytest.mark.parametrize("name", ["none.png", "*.png", "**/*.svs", "folder"])
def test_nothing_found_names_the_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        expand_paths([tmp_path / name])
    assert str(tmp_path / name) in str(caught.value)


def test_no_source_at_all_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match="empty list"):
        expand_paths([])


@pytest.mark.parametrize(
    ("images", "files", "partners"),
    [
        ("b.png a.png", "a.geojson b.geojson c.geojson", "b.geojson a.geojson"),
        ("huge.ome.tif", "huge.geojson other.geojson", "huge.geojson"),
        ("huge.ome.tif", "huge.geojson huge.ome.geojson", "huge.ome.geojson"),
        ("a.tif b.tif", "a.tif.geojson b.tif.geojson.gz", "a.tif.geojson b.tif.geojson.gz"),
        (
            "s.2024.1.tif s.2024.2.tif",
            "s.2024.1.geojson s.2024.2.geojson",
            "s.2024.1.geojson s.2024.2.geojson",
        ),
        ("a.uuid.svs", "a.geojson.gz", "a.geojson.gz"),
    ],
)
def test_pairs_are_made_by_name(tmp_path: Path, images: str, files: str, partners: str) -> None:
    touch(tmp_path, *files.split())
    expected = [tmp_path / name for name in partners.split()]
    paths = [Path("elsewhere") / name for name in images.split()]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*huge\.ome\.tif: its annotations are read from")
        assert match_annotations(paths, tmp_path) == expected
        assert match_annotations(paths, str(tmp_path / "*.geojson*")) == expected
    assert match_annotations(paths, expected[::-1]) == expected


def test_geojson_comes_before_json_and_text(tmp_path: Path) -> None:
    touch(tmp_path, "a.json", "a.geojson", "a.txt", "b.json", "c.txt", "classes.txt")
    images = [Path(f"{name}.png") for name in "abc"]
    with pytest.warns(UserWarning, match=r"a\.png: its annotations are read from .*a\.geojson, not from") as caught:
        found = match_annotations(images, tmp_path)
    assert found == [tmp_path / name for name in ("a.geojson", "b.json", "c.txt")]
    (warning,) = caught
    assert str(warning.message).endswith(f"not from {tmp_path / 'a.json'}, {tmp_path / 'a.txt'}")


def test_other_files_of_an_images_name_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "s.geojson", "s.2.geojson", "s.tif.json", "t.ome.geojson", "t.geojson", "t.mask.json")
    images = [Path("s.tif"), Path("s.2.tif"), Path("t.ome.tif")]
    with pytest.warns(UserWarning, match="its annotations are read from") as caught:
        found = match_annotations(images, tmp_path)
    assert [path.name for path in found] == ["s.tif.json", "s.2.geojson", "t.ome.geojson"]
    told = {str(each.message).partition(":")[0]: str(each.message).rpartition("not from ")[2] for each in caught}
    assert told == {"s.tif": str(tmp_path / "s.geojson"), "t.ome.tif": str(tmp_path / "t.geojson")}


def test_one_image_and_one_named_file_pair_whatever_their_names(tmp_path: Path) -> None:
    files = touch(tmp_path, "export.json")
    assert match_annotations([Path("scene.tif")], files[0]) == files
    assert match_annotations([Path("scene.tif")], [str(files[0])]) == files
    with pytest.raises(AnnotationError, match=r"scene\.tif, named scene\.geojson; found none in"):
        match_annotations([Path("scene.tif")], tmp_path / "*.json")


@pytest.mark.parametrize(
    ("images", "files", "message"),
    [
        ("a.png b.png", "a.geojson", r"for the image b\.png, named b\.geojson; found none in"),
        ("s.1.tif s.2.tif", "s.1.geojson", r"for the image s\.2\.tif, named s\.2\.geojson; found none in"),
        ("a.png", "a.geojson a.geojson.gz", r"named a\.geojson; found .*a\.geojson, .*a\.geojson\.gz"),
        ("a.png a.tif", "a.geojson", r"the images a\.png and a\.tif would share"),
        ("a.png", "a.csv", "no annotations: the folder"),
    ],
)
def test_a_pair_that_fails_names_the_image(tmp_path: Path, images: str, files: str, message: str) -> None:
    touch(tmp_path, *files.split())
    with pytest.raises(AnnotationError, match=message):
        match_annotations([Path(name) for name in images.split()], tmp_path)


def test_a_list_of_another_length_is_refused(tmp_path: Path) -> None:
    files = touch(tmp_path, "a.geojson", "b.geojson")
    with pytest.raises(AnnotationError, match="one annotation file for each image; got 2 for 1"):
        match_annotations([Path("a.png")], files)


# Real files


@pytest.mark.skipif(not (DATA / "rbc").is_dir(), reason="the shared blood smears are not here")
def test_all_blood_smears_are_read() -> None:
    images = expand_paths(DATA / "rbc" / "images")
    files = match_annotations(images, DATA / "rbc" / "annotations")
    read = [read_annotations(file, full_shape=(480, 640)) for file in files]
    assert len(read) == 360
    assert [one.path.name for one in read if one.path and not one.objects] == ["56.geojson"]
    assert sum(len(one.objects) for one in read) == 13_230
    assert len({label for one in read for label in one.labels}) == 13
    assert all(annotation.is_point for one in read for annotation in one.objects)


@pytest.mark.skipif(not (DATA / "mars").is_dir(), reason="the shared scenes of Mars are not here")
def test_all_craters_are_read() -> None:
    files = match_annotations(expand_paths(DATA / "mars"), DATA / "mars" / "*.geojson")
    read = [read_annotations(file, full_shape=(2000, 2000)) for file in files]
    assert len(read) == 8
    assert sum(len(one.objects) for one in read) == 3518
    assert {label for one in read for label in one.labels} == {"crater"}
    assert all(annotation.is_box for one in read for annotation in one.objects)
    assert {a.measurements["confidence"] for one in read for a in one.objects} == {1, 2, 3, 4, 5, 6}
    outside_reader = [shape(f["geometry"]) for f in json.loads(files[0].read_bytes())["features"]]
    assert all(a.geometry.equals(b) for a, b in zip(read[0].objects, outside_reader, strict=True))
