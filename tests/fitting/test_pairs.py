"""Which annotations are an image's if none are given."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from coarse2fine.annotations.read import AnnotationError
from coarse2fine.fitting.pairs import load_pairs
from tests.fitting.discs import collection, feature


def write(folder: Path, name: str, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    squares = [feature("a", [[x, 0], [x + 5, 0], [x + 5, 5], [x, 5]]) for x in range(0, 8 * count, 8)]
    (folder / f"{name}.geojson").write_text(json.dumps(collection(*squares)), "utf-8")
    path = folder / f"{name}.png"
    cv2.imwrite(str(path), np.zeros((32, 64), np.uint8))
    return path


def test_annotations_beside_the_images_are_taken(tmp_path: Path) -> None:
    paths = [write(tmp_path, name, count) for name, count in (("a", 1), ("b", 3))]
    for images in (tmp_path, str(tmp_path / "*.png"), paths[::-1]):
        pairs = load_pairs(images, None)
        assert {image.name: len(annotated.objects) for image, annotated in pairs} == {"a": 1, "b": 3}
    assert [len(annotated.objects) for _, annotated in load_pairs(paths[1], None)] == [3]


def test_an_image_without_annotations_beside_it_is_told(tmp_path: Path) -> None:
    write(tmp_path, "a", 1)
    (tmp_path / "a.geojson").unlink()
    with pytest.raises(AnnotationError, match=r"no annotations.*; name the annotations, or an expert"):
        load_pairs(tmp_path / "a.png", None)


def test_several_folders_and_arrays_have_none_beside_them(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, name, 1) for name in "ab"]
    with pytest.raises(ValueError, match=r"give annotations \(the images lie in several folders\)"):
        load_pairs(paths, None)
    with pytest.raises(ValueError, match=r"not files have none beside them"):
        load_pairs(np.zeros((9, 9), np.uint8), None)
