"""Annotations that other tools write: COCO, YOLO, Label Studio, LabelMe; and COCO that is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine.annotations.coco import decoded_counts
from coarse2fine.annotations.read import AnnotationError, match_annotations, read_annotations, read_each
from coarse2fine.region import Region
from coarse2fine.results.coco import Found, write_coco
from coarse2fine.tiling.opening import open_image


def coco(*annotations: dict[str, Any], images: int = 2) -> dict[str, Any]:
    return {
        "images": [{"id": 10 * i, "file_name": f"in/{i}.jpg", "height": 80, "width": 100} for i in range(images)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [{"id": n, "image_id": 0, "category_id": 3, **each} for n, each in enumerate(annotations)],
    }


def compressed(counts: list[int]) -> str:
    """COCO's text of run lengths, a number at a time as its own programs make it."""
    text = ""
    for i, count in enumerate(counts):
        value, more = count - (counts[i - 2] if i > 2 else 0), True
        while more:
            bits = value & 31
            value >>= 5
            more = value != -1 if bits & 16 else value != 0
            text += chr((bits | 32 if more else bits) + 48)
    return text


def runs_of(mask: NDArray[np.bool_]) -> list[int]:
    """Run lengths down the columns, beginning with zeros, counted one by one."""
    counts, last = [0], False
    for value in mask.ravel(order="F").tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return counts


def written(folder: Path, payload: Any) -> Path:
    path = folder / "export.json"
    path.write_text(json.dumps(payload))
    return path


def full_bounds(found: Any) -> list[tuple[float, ...]]:
    return [each.full_bounds for each in found.objects]


def test_coco_boxes_polygons_and_crowds() -> None:
    payload = coco(
        {"bbox": [10, 20, 30, 40], "score": 0.5},
        {"segmentation": [[1, 1, 5, 1, 5, 5], [11, 1, 15, 1, 15, 5]], "bbox": [0, 0, 99, 79], "category_id": 7},
        {"bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"bbox": [50, 50, 5, 5], "image_id": 10},
    )
    found = read_annotations(payload, full_shape=(80, 100), image="elsewhere/in/0.jpg")
    assert full_bounds(found) == [(20, 10, 60, 40), (1, 1, 5, 15)]
    assert found.labels == ("cat", "dog")
    assert found.objects[0].is_box
    assert found.objects[0].measurements == {"score": 0.5}
    assert found.objects[1].geometry.area == 16
    assert found.ignored[0].bounds == (0, 0, 9, 9)
    assert full_bounds(read_annotations(payload, image="1.png")) == [(50, 50, 55, 55)]
    assert full_bounds(read_annotations(payload, image="1.jpg", full_shape=(160, 200))) == [(100, 100, 110, 110)]
    with pytest.raises(AnnotationError, match="which is not the shape of this one"):
        read_annotations(payload, image="1.jpg", full_shape=(100, 80))
    with pytest.raises(AnnotationError, match=r"holds 2 images, but none of the name of x\.jpg"):
        read_annotations(payload, image="x.jpg")
    with pytest.raises(AnnotationError, match="annotations of 2 images; say which one"):
        read_annotations(payload)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 99), st.booleans())
@settings(derandomize=True, deadline=None, max_examples=60)
def test_run_lengths_are_the_pixels_they_stand_for(height: int, width: int, seed: int, packed: bool) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < rng.choice([0.1, 0.5, 0.95])
    mask[seed % height, seed % width] = True
    counts = runs_of(mask)
    outline = {"size": [height, width], "counts": compressed(counts) if packed else counts}
    payload = {**coco({"segmentation": outline}), "images": [{"id": 0, "file_name": "a.jpg"}]}
    geometry = read_annotations(payload).objects[0].geometry
    y, x = np.indices(mask.shape) + 0.5
    np.testing.assert_array_equal(shapely.contains_xy(geometry, x, y), mask)
    assert geometry.area == mask.sum()


def test_a_run_length_text_of_the_reference_program() -> None:
    # 40 x 50, a rectangle of rows 5 to 14 and columns 7 to 27, as pycocotools 2.0.11 packs it.
    assert decoded_counts("m8:n0000000000000000000000000000000000000000[k0").tolist() == [285, *[10, 30] * 20, 10, 905]


def test_one_coco_file_for_many_images(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / "in" / f"{i}.png"), np.zeros((80, 100), np.uint8))
    images = sorted((tmp_path / "in").glob("*.png"))
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco(*({"bbox": [5, i, 10, 10], "image_id": 10 * i} for i in range(3)), images=3)))
    for named in (path, [path], tmp_path, str(tmp_path / "*.json")):
        assert match_annotations(images, named) == [path] * 3
    opened = [open_image(image) for image in images]
    assert [full_bounds(each) for each in read_each([path] * 3, opened)] == [[(i, 5, i + 10, 15)] for i in range(3)]
    (tmp_path / "2.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    assert match_annotations(images[:2], tmp_path) == [path, path]
    with pytest.raises(AnnotationError, match=r"for the image .*9\.png"):
        match_annotations([*images, Path("9.png")], path)


@pytest.mark.parametrize(
    ("beside", "text", "names"),
    [
        (None, "", ("0", "2")),
        ("classes.txt", "cat\ndog\nbird\n", ("bird", "cat")),
        ("../data.yaml", "path: x\nnames: [cat, 'dog', \"bird\"]\nnc: 3\n", ("bird", "cat")),
        ("../data.yaml", "names:\n  0: cat\n  2: bird  # of prey\nval: y\n", ("bird", "cat")),
        ("../data.yaml", "names:\n- cat\n- dog\n- bird\n\nval: y\n", ("bird", "cat")),
        ("../data.yaml", "names: {0: cat, 2: bird}\n", ("bird", "cat")),
    ],
)
def test_yolo_boxes_and_outlines(tmp_path: Path, beside: str | None, text: str, names: tuple[str, str]) -> None:
    (tmp_path / "labels").mkdir()
    path = tmp_path / "labels" / "a.txt"
    path.write_text("0 0.5 0.5 0.2 0.4\n2 0.1 0.1 0.3 0.1 0.3 0.3\n0 0.5 0.5 0.2 0.4 0.75\n")
    if beside:
        (tmp_path / "labels" / beside).write_text(text)
    found = read_annotations(path, full_shape=(100, 200))
    assert found.labels == names
    np.testing.assert_allclose(full_bounds(found), [(30, 80, 70, 120), (10, 20, 30, 60), (30, 80, 70, 120)])
    assert found.objects[2].measurements == {"score": 0.75}
    assert match_annotations([Path("in/a.jpg")], tmp_path / "labels") == [path]
    with pytest.raises(AnnotationError, match="expected its size"):
        read_annotations(path)


def test_yolo_lines_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("0 0.5 0.5 0.2 0.4\n0 50 50 20 40\n0.5 0.5 0.5 0.1 0.1\n0 0.5\n0 nan 0.5 0.1 0.1\n")
    found = read_annotations(path, full_shape=(100, 200))
    assert len(found.objects) == 1
    assert sum("left out" in note for note in found.notes) == 3
    path.write_text("0 0.5 0.5 0.2 0.4\n0 0.5 0.5 0,2 0.4\ncat 0.5 0.5 0.2 0.4\n")
    found = read_annotations(path, full_shape=(100, 200))
    assert full_bounds(found) == [(30, 80, 70, 120)]
    assert "left out 2 of 3, line 2, line 3: is not: class x y width height" in found.notes[0]
    path.write_text("a.jpg\nb.jpg\n")
    with pytest.raises(AnnotationError, match="is text, but not YOLO's"):
        read_annotations(path, full_shape=(100, 200))
    path.write_text("")
    assert read_annotations(path, full_shape=(100, 200)).objects == ()


def test_yolo_classes_without_a_name_are_counted(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{number} 0.5 0.5 0.2 0.4\n" for number in (0, 7, 1, 7, 2)))
    found = read_annotations(path, full_shape=(100, 200))
    assert [o.label for o in found.objects] == ["cat", "7", "dog", "7", "2"]
    (note,) = found.notes
    assert "3 of 5 are of classes that the list of names beside it does not have (2, 7)" in note


def result(kind: str, number: int = 0, **value: Any) -> dict[str, Any]:
    shape = {"original_width": 200, "original_height": 100}
    return {"id": str(number), "type": kind, **shape, "value": value}


def test_label_studio(tmp_path: Path) -> None:
    shapes = [
        result("rectanglelabels", x=10, y=20, width=30, height=40, rotation=0, rectanglelabels=["a"]),
        result("rectanglelabels", x=50, y=10, width=10, height=10, rotation=90, rectanglelabels=["b"]),
        result("polygonlabels", points=[[1, 1], [5, 1], [5, 9]], polygonlabels=["c"]),
        result("keypointlabels", x=10, y=20, width=0.5, keypointlabels=["d"]),
        result("ellipselabels", x=50, y=50, radiusX=10, radiusY=20, rotation=0, ellipselabels=["e"]),
        result("rectangle", 9, x=0, y=0, width=10, height=10),
        result("labels", 9, x=0, y=0, width=10, height=10, labels=["f"]),
        result("brushlabels", rle=[1, 2], brushlabels=["g"]),
        {"type": "choices", "value": {"choices": ["good"]}},
    ]
    task = {"data": {"image": "/data/upload/3/0123abcd-scan.png"}}
    tasks = [
        {**task, "annotations": [{"was_cancelled": True, "result": []}, {"result": shapes}]},
        {"data": {"image": "/data/local-files/?d=in/other.png"}, "annotations": []},
    ]
    path = written(tmp_path, tasks)
    found = read_annotations(path, full_shape=(100, 200), image="scan.png")
    expected = [
        (20, 20, 60, 80),
        (10, 90, 30, 100),  # 20 wide and 10 high, turned to the right about its upper left corner
        (1, 2, 9, 10),
        (20, 20, 20, 20),
        (30, 80, 70, 120),
        (0, 0, 10, 20),
    ]
    np.testing.assert_allclose(full_bounds(found), expected, atol=1e-9)
    assert [o.label for o in found.objects] == list("abcdef")
    assert "is painted with a brush" in found.notes[0]
    assert read_annotations(path, full_shape=(100, 200), image="in/other.png").objects == ()


def test_label_studio_in_short(tmp_path: Path) -> None:
    size = {"original_width": 200, "original_height": 100}
    shape = {"x": 10, "y": 20, "width": 30, "height": 40, "rectanglelabels": ["a"], **size}
    task = {"image": "/data/upload/3/0123abcd-scan.png", "id": 1, "label": [shape]}
    found = read_annotations(written(tmp_path, [task]), full_shape=(200, 400))
    assert full_bounds(found) == [(40, 40, 120, 160)]
    assert "made on 200 x 100 pixels, scaled to the image's 400 x 200" in found.notes[0]


def test_labelme() -> None:
    def shape(kind: str, *points: tuple[float, float]) -> dict[str, Any]:
        return {"label": kind, "points": [list(p) for p in points], "shape_type": kind}

    shapes = [
        shape("rectangle", (30, 40), (10, 20)),
        shape("polygon", (1, 1), (5, 1), (5, 9)),
        shape("circle", (50, 50), (53, 54)),
        shape("point", (7, 8)),
        shape("line", (1, 1), (2, 2)),
    ]
    payload = {"version": "5", "imagePath": "a.jpg", "imageHeight": 100, "imageWidth": 200, "shapes": shapes}
    found = read_annotations(payload, full_shape=(100, 200))
    assert found.labels == ("circle", "point", "polygon", "rectangle")
    expected = [(20, 10, 40, 30), (1, 1, 9, 5), (45, 45, 55, 55), (8, 7, 8, 7)]
    np.testing.assert_allclose(full_bounds(found), expected, atol=1e-9)
    assert "left out 1 of 5, shape 5: is a line" in found.notes[0]


def test_a_file_of_another_image_is_told() -> None:
    square = {"label": "a", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}
    labelme = {"imagePath": "..\\in\\scene 1.jpg", "shapes": [square]}
    task = {"data": {"image": "/data/upload/0123abcd-scene 1.jpg"}, "annotations": [{"result": []}]}
    data_set = {**coco({"bbox": [1, 1, 8, 8]}), "images": [{"id": 0, "file_name": "in/scene 1.jpg"}]}
    for payload in (labelme, [task], data_set):
        for name in ("/data/scene 1.png", "scene 1.ome.tif", None):
            assert not read_annotations(payload, image=name).notes
        (note,) = read_annotations(payload, image="/data/scene 2.jpg").notes
        assert "made on the image scene 1.jpg, taken for scene 2.jpg; do they belong together?" in note


def test_coco_annotations_of_no_image_are_named(tmp_path: Path) -> None:
    lost: list[Any] = [None, {"id": 1, "bbox": [0, 0, 1, 1]}, {"id": 2, "image_id": 99, "bbox": [0, 0, 1, 1]}]
    payload = coco({"bbox": [1, 1, 8, 8]}, images=1)
    payload["annotations"] += lost
    told = [
        "left out 1 of 4, annotation 2: is not a JSON object",
        "left out 1 of 4, annotation 3: has no image_id",
        "left out 1 of 4, annotation 4: has an image_id that no image of the file has",
    ]
    assert [note.partition(": ")[2] for note in read_annotations(payload).notes] == told
    with pytest.raises(AnnotationError, match=r"annotation 1 of .* is not a JSON object; none of 3 can be used"):
        read_annotations({**payload, "annotations": lost})
    several = {**coco(images=2), "annotations": payload["annotations"]}
    path = written(tmp_path, several)
    images = [tmp_path / f"{i}.png" for i in range(2)]
    for image in images:
        cv2.imwrite(str(image), np.zeros((80, 100), np.uint8))
    with pytest.warns(UserWarning, match="left out 1 of 4") as caught:
        found = read_each([path] * 2, [open_image(image) for image in images])
    assert [len(each.objects) for each in found] == [1, 0]
    assert [str(each.message).partition(": ")[2] for each in caught] == told  # once, not for each image


def test_coco_results_are_told_from_a_data_set(tmp_path: Path) -> None:
    path = written(tmp_path, [{"image_id": 1, "category_id": 3, "bbox": [1, 1, 8, 8], "score": 0.5}])
    with pytest.raises(AnnotationError, match=r"export\.json is a list of COCO results .* expected the data set"):
        read_annotations(path)


def test_an_image_in_two_files_is_told(tmp_path: Path) -> None:
    images = [Path("0.jpg"), Path("1.jpg")]
    path = written(tmp_path, coco({"bbox": [1, 1, 8, 8]}))
    (tmp_path / "1.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.warns(UserWarning, match=r"1\.jpg: .* read from .*1\.geojson, not from .*export\.json"):
        assert match_annotations(images, tmp_path) == [path, tmp_path / "1.geojson"]


def test_coco_that_is_written_is_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    low, size = rng.uniform(0, 500, (40, 2)), rng.uniform(0.1, 200, (40, 2))
    boxes = np.concatenate([low, low + size], axis=1).tolist()
    regions = tuple(Region("ab"[i % 2], 0.25 + i / 100, tuple(each)) for i, each in enumerate(boxes))
    outlined = Region("c", 1.0, (0, 0, 10, 10), ((0, 0), (0, 10), (10, 0)))
    images = [Found("x.tif", (700, 800), regions, ("b", "a")), Found("y.tif", (50, 60), (outlined,), ("c",))]
    path = write_coco(tmp_path / "finds.json.gz", images)
    found = read_annotations(path, full_shape=(700, 800), image="x.tif")
    assert full_bounds(found) == [region.full_box for region in regions]
    assert [o.measurements["score"] for o in found.objects] == [region.score for region in regions]
    assert [o.label for o in found.objects] == [region.label for region in regions]
    assert all(o.is_box for o in found.objects)
    other = read_annotations(path, full_shape=(50, 60), image="y.tif").objects[0]
    assert other.geometry.equals(shapely.Polygon([(0, 0), (10, 0), (0, 10)]))
