"""Classes of finds by a classifier that reads crops of the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine import analyze, load_model, open_image
from coarse2fine.model import Model
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.fork import ForkTree
from coarse2fine.region import Region
from coarse2fine.specialists.classifier import Classifier
from coarse2fine.steps.classify import Crop, classify
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.image import Image

MakeImage = Callable[..., NDArray[np.uint8]]


def by_brightness() -> Classifier:
    """Names crops "dark" or "light" by their mean: known without the net's code."""
    net = ConvStack(StackSpec.parse(3, "2/2:1 8:2"))
    with torch.no_grad():
        for conv in net.convs:
            conv.weight.fill_(1 / conv.weight[0].numel())  # type: ignore[operator, index]
            conv.bias.zero_()  # type: ignore[operator]
        net.convs[-1].weight[0].neg_()  # type: ignore[index]
        net.convs[-1].bias.copy_(torch.tensor([1.0, -1.0]))  # type: ignore[operator]
    shares = np.full((1, 2), 0.5, np.float32)
    # Without normalisation the first stage's mean is positive, so its ReLU changes nothing.
    return Classifier(("dark", "light"), ForkTree(net), (0.0,) * 3, (0.5,) * 3, 1.0, shares, {})


@pytest.fixture
def named(detector: Model) -> Model:
    return replace(detector, classifier=by_brightness())


def find(label: str, y: float, x: float, side: float) -> Region:
    return Region(label, 0.9, (y - side / 2, x - side / 2, y + side / 2, x + side / 2))


@settings(derandomize=True, deadline=None, max_examples=80)
@given(side=st.floats(1, 900), y=st.floats(0, 500), x=st.floats(0, 500))
def test_crops_have_enough_pixels_and_lie_around_the_find(side: float, y: float, x: float) -> None:
    crop = Crop.around((y, x), side, 30)
    width = crop.box.width * crop.downsample
    assert abs(width - side) <= max(1.0, crop.downsample)
    assert crop.downsample == 1 or 30 <= crop.box.width < 62
    middle = np.array([crop.box.y0 + crop.box.y1, crop.box.x0 + crop.box.x1]) / 2 * crop.downsample
    assert np.abs(middle - (y, x)).max() <= crop.downsample


def test_a_crop_is_the_area_mean_of_its_square() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (240, 240), np.uint8)
    read = Crop.around((120.0, 120.0), 120.0, 30).read(open_image(pixels), 30, 1)
    expected = cv2.resize(pixels[60:180, 60:180], (30, 30), interpolation=cv2.INTER_AREA)
    assert np.abs(read[..., 0].astype(int) - expected).max() <= 1


def test_finds_get_the_classifiers_class_and_areas_keep_theirs(named: Model) -> None:
    pixels = np.full((200, 200), 20, np.uint8)
    pixels[:, 100:] = 230
    names = [label.name for label in named.labels]
    area = next(label.name for label in named.labels if label.kind == "area") if named.areas.any() else None
    regions = [find(names[0], 60, 50, 20), find(names[0], 60, 150, 40), *([find(area, 60, 50, 20)] if area else [])]
    found = classify(regions, named, open_image(pixels))
    assert [region.label for region in found.regions] == ["dark", "light", *([area] if area else [])]
    assert [region.full_box for region in found.regions] == [region.full_box for region in regions]
    assert found.macs == 2 * StackSpec.parse(3, "2/2:1 8:2").macs(1, 1)
    assert not found.failures


def test_a_find_that_cannot_be_read_keeps_its_class(named: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    image = open_image(np.full((200, 200), 20, np.uint8))
    read = Image.read_scaled

    def broken(self: Image, box: Any, downsample: int) -> NDArray[np.uint8]:
        if box.x0 > 100:
            raise ImageError("chunk 3 is damaged")
        return read(self, box, downsample)

    monkeypatch.setattr(Image, "read_scaled", broken)
    label = named.labels[0].name
    found = classify([find(label, 60, 50, 20), find(label, 60, 150, 20)], named, image)
    assert [region.label for region in found.regions] == ["dark", label]
    assert found.failures == ("a find keeps its class: chunk 3 is damaged",)


def test_an_analysis_names_its_finds(named: Model, make_image: MakeImage, tmp_path: Path) -> None:
    pixels = make_image(256, 256)
    plain = analyze(pixels, replace(named, classifier=None), budget=1.0)
    whole = analyze(pixels, load_model(named.save(tmp_path / "named.c2f")), budget=1.0)
    assert len(plain.regions) > 0
    assert [r.full_box for r in whole.regions] == [r.full_box for r in plain.regions]
    assert {r.label for r in whole.regions} <= {"dark", "light"}
    assert whole.cost.classify_macs > 0
    assert whole.cost.macs == plain.cost.macs
    assert whole.cost.share == plain.cost.share
    image = open_image(pixels)
    for region in whole.regions:
        y0, x0, y1, x1 = region.full_box
        crop = Crop.around(region.full_centre, max(y1 - y0, x1 - x0), 16).read(image, 16, 3)
        if abs(float(crop.mean()) - 127.5) > 0.5:
            assert region.label == ("light" if crop.mean() > 127.5 else "dark")
