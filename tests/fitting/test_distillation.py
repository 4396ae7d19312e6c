"""What the base learns from: crops of the refine net's answer at several scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import coarse2fine.fitting.distillation
import coarse2fine.fitting.rescaled
import coarse2fine.fitting.teacher
from coarse2fine.annotations.read import read_annotations
from coarse2fine.fitting.crops import Recipe, within
from coarse2fine.fitting.distillation import held_samples, make_samples
from coarse2fine.fitting.rescaled import COPIES, LARGEST, Area, Areas, answered_areas
from coarse2fine.fitting.scene import PART, Scene
from coarse2fine.fitting.teacher import exhaustive_answer
from coarse2fine.model import Geometry, Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.preprocess import normalised
from coarse2fine.refiners.detection import DetectionRefiner
from coarse2fine.refiners.net import net_of
from coarse2fine.refiners.protocol import Label
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image
from tests.refining import built_in, net

MakeImage = Callable[..., NDArray[np.uint8]]
SIDE, COUNT = 768, 12
FAR = [[0, 0], [SIDE, 0], [SIDE, 640], [0, 640], [0, 0]]
REGION = {
    "type": "Feature",
    "geometry": {"type": "Polygon", "coordinates": [FAR]},
    "properties": {"classification": {"name": "Region*"}},
}


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse2fine.fitting.distillation, "_SAMPLES", COUNT)


def answered(
    model: Model, make_image: MakeImage, runtime: Runtime, *features: dict[str, Any], sides: Sequence[int] = (SIDE,)
) -> tuple[Model, Areas]:
    collection = {"type": "FeatureCollection", "features": list(features)}
    scenes = []
    for side in sides:
        annotations = read_annotations(collection, full_shape=(side, side))
        image = open_image(make_image(side, side))
        scene = Scene(image, annotations, model.labels, fine_cell=model.geometry.fine_cell, largest=99, nominal=16)
        scene.held[0, 0] = scene.held.size > 1
        scenes.append(scene)
    answers = exhaustive_answer(model, scenes, runtime, 0)
    assert len(answers.found[0]) > 20
    model = replace(model, threshold=answers.threshold)
    return model, answered_areas(model, scenes, answers, [recipe_of(model)], runtime)


def recipe_of(model: Model) -> Recipe:
    mean, std = np.array(model.mean, np.float32), np.array(model.std, np.float32)
    return Recipe(model.geometry, net(model).spec, 3, mean, std, True, 30, 5)


def plain_answer(model: Model, area: Area, box: Box, runtime: Runtime) -> NDArray[np.float32]:
    """The best class's probability in a box of cells, from the net alone, on pixels read for this box."""
    spec = net(model).spec
    pixels = area.read(box.scale(spec.stride).expand(spec.margin), model.geometry.refine_downsample)
    out = net(model)(normalised(pixels[None], model, runtime))[0, :-4]
    return np.asarray(out.max(dim=0).values.sigmoid().detach().numpy(), np.float32)


def test_a_cut_holds_what_the_refine_net_answers_to_the_crop_alone(
    detector: Model, make_image: MakeImage, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which of several overlapping finds stays may be decided beyond a crop: here all stay.
    for module in (coarse2fine.fitting.rescaled, coarse2fine.fitting.teacher):
        monkeypatch.setattr(module, "settle", lambda candidates, _: candidates)
    model, areas = answered(detector, make_image, runtime)
    assert [area.stratum for area in areas.areas] == [0, 1, 2, 3]
    rng = np.random.default_rng(0)
    for area in areas.areas:
        found = 0
        for y, x in rng.integers(0, np.array(area.target.shape) - 20, (4, 2)).tolist():
            box = Box(y, x, y + 20, x + 20)
            p = plain_answer(model, area, box, runtime)
            odds = p / (1 - p) * (1 - model.threshold) / model.threshold
            expected = np.where(p >= 0.05, odds / (1 + odds), 0)
            sure = np.abs(p - 0.05) > 1e-4
            np.testing.assert_allclose(area.target[box.slices][sure], expected[sure], atol=1e-4)
            found += int((expected > 0.2).sum())
        assert found


def test_rescaled_scenes_look_as_if_they_were_taken_from_nearer_or_farther(
    detector: Model, make_image: MakeImage, runtime: Runtime
) -> None:
    _, areas = answered(detector, make_image, runtime)
    whole = areas.areas[0]
    for area in areas.areas[1:]:
        zoom, side = float(area.zoom), round(SIDE / float(area.zoom))
        assert (area.image.height, area.image.width) == (side, side)
        # The mean of a square is that of the square it was taken from.
        box, source = Box(16, 32, 96, 144), Box(*(round(n * zoom) for n in (16, 32, 96, 144)))
        np.testing.assert_allclose(area.read(box, 1).mean(), whole.read(source, 1).mean(), atol=2)
        inside = area.known[: side // 8, : side // 8]
        y, x = ((np.indices(inside.shape) + 0.5) * 8 * zoom).astype(int) // (8 * PART)
        np.testing.assert_array_equal(inside, (y > 0) | (x > 0))
    pixels = sum(SIDE**2 / float(area.zoom) ** 2 for area in areas.areas[1:])
    assert pixels < areas.pixels < 2 * pixels


def test_every_copy_has_its_own_scale_and_all_scales_are_covered(
    detector: Model, make_image: MakeImage, runtime: Runtime
) -> None:
    _, areas = answered(detector, make_image, runtime, sides=(SIDE, 300, 200, 300))
    assert [area.zoom for area in areas.areas[:4]] == [1] * 4
    scales = np.log([float(area.zoom) for area in areas.areas[4:]])
    assert len(scales) == len(set(scales)) == 4 * COPIES
    # One in each twelfth of the range, up to rounding; each scene has one in each third.
    steps = (np.sort(scales) / LARGEST + 1) * 6
    np.testing.assert_allclose(steps, np.arange(12) + 0.5, atol=0.7)
    thirds = scales.reshape(COPIES, 4)
    assert (thirds[:-1].max(axis=1) < thirds[1:].min(axis=1)).all()


def test_samples_are_crops_of_pixels_and_answers(detector: Model, make_image: MakeImage, runtime: Runtime) -> None:
    model, areas = answered(detector, make_image, runtime)
    scene = [replace(areas.areas[0], moves=False)]
    samples = make_samples(recipe_of(model), model.base.spec, scene)
    again = make_samples(recipe_of(model), model.base.spec, scene)
    assert len(samples) == COUNT
    side, spec = samples.target.shape[-1], model.base.spec
    plain = scene[0].read(Box(0, 0, SIDE // 2, SIDE // 2).expand(spec.margin), 2)
    windows = np.lib.stride_tricks.sliding_window_view(scene[0].target, (side, side))
    for number in range(COUNT):
        np.testing.assert_array_equal(again.pixels[number], samples.pixels[number])
        target = np.where(samples.valid[number, 0], samples.target[number, 0], 0)
        places = [
            (y, x)
            for y, x in np.ndindex(windows.shape[:2])
            if np.array_equal(windows[y, x] * samples.valid[number, 0], target)
        ]
        size = spec.input_size(side)
        cuts = [plain[y * 4 : y * 4 + size, x * 4 : x * 4 + size] for y, x in places]
        assert any(np.array_equal(cut, samples.pixels[number]) for cut in cuts)
    assert (samples.target * samples.valid > 0.2).any(axis=(1, 2, 3)).sum() >= COUNT // 3


def test_targets_follow_a_moved_grid(detector: Model, make_image: MakeImage, runtime: Runtime) -> None:
    _, areas = answered(detector, make_image, runtime)
    for area in areas.areas:
        box = Box(0, 0, *area.target.shape)
        np.testing.assert_array_equal(area.moved(box, (0, 0)), area.target)
    finds = np.array([[3.9, 2.1, 0.5], [3.4, 2.2, 0.75], [0.2, 0.1, 1.0]], np.float32)
    moved = replace(areas.areas[0], finds=finds).moved(Box(1, 0, 6, 5), (0.5, 0.25))
    expected = np.zeros((5, 5))
    expected[2, 1], expected[1, 1] = 0.5, 0.75  # rows 3 and 2 of the grid; the third find lies outside
    np.testing.assert_array_equal(moved, expected)


def test_objects_may_have_any_place_within_their_cell(
    detector: Model, make_image: MakeImage, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coarse2fine.fitting.distillation, "_SAMPLES", 40)
    model, areas = answered(detector, make_image, runtime)
    scene, spec = areas.areas[0], model.base.spec
    finds = scene.finds[scene.finds[:, 2] > 0.5]
    clear = np.where(scene.target > 0.5, scene.target, np.float32(0))
    samples = make_samples(recipe_of(model), spec, [replace(scene, finds=finds, target=clear)])
    size, side = samples.pixels.shape[1], samples.target.shape[-1]
    plane = scene.read(Box(0, 0, SIDE // 2, SIDE // 2).expand(spec.margin + spec.stride), 2).astype(np.float32)
    corners = set()
    for pixels, target, valid in zip(samples.pixels, samples.target[:, 0], samples.valid[:, 0], strict=True):
        match = cv2.matchTemplate(plane, pixels.astype(np.float32), cv2.TM_SQDIFF)
        y, x = np.unravel_index(match.argmin(), match.shape)
        assert np.array_equal(plane[y : y + size, x : x + size], pixels)
        corners.add((y % spec.stride, x % spec.stride))
        place = np.floor((finds[:, :2] * 8 / 2 - (y, x)) / spec.stride + 1).astype(int)  # cells of 8 px, plane at 1/2
        inside = ((place >= 0) & (place < side)).all(axis=1)
        expected = np.zeros((side, side), bool)
        expected[tuple(place[inside].T)] = True
        np.testing.assert_array_equal((target > 0) & valid, expected & valid)
    assert len(corners) > 10


def test_parts_of_areas_stay_in_their_cells(detector: Model, make_image: MakeImage, runtime: Runtime) -> None:
    tissue = replace(built_in(detector), labels=(Label("left", "area"), Label("right")))
    _, areas = answered(replace(detector, refiner=tissue), make_image, runtime)
    assert not any(area.moves for area in areas.areas)


def test_nothing_is_learned_from_what_is_held_back_or_not_annotated(
    detector: Model, make_image: MakeImage, runtime: Runtime
) -> None:
    model, areas = answered(detector, make_image, runtime, REGION)
    whole = areas.areas[0]
    assert whole.known.any()
    assert not (whole.known & whole.held).any()
    assert not whole.known[:PART, :PART].any()
    for area in areas.areas:
        assert not area.known[int(640 / 8 / area.zoom) + 1 :].any()
    held = held_samples(recipe_of(model), model.base.spec, areas.areas)
    assert held.valid.any()
    only = [replace(whole, target=np.where(whole.held, whole.target, np.float32(np.nan)))]
    np.testing.assert_array_equal(held_samples(recipe_of(model), model.base.spec, only).target, held.target)


def test_of_large_scenes_squares_are_taken(
    detector: Model, make_image: MakeImage, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coarse2fine.fitting.rescaled, "_MOST_PIXELS", 6 * 256**2)
    monkeypatch.setattr(coarse2fine.fitting.rescaled, "_SIDE", 256)
    model, areas = answered(detector, make_image, runtime)
    squares = areas.areas[1:]
    assert [area.target.shape for area in squares] == [(32, 32)] * 6
    for area in squares:
        assert area.cut
        assert not area.known[0].any()
        assert not area.known[:, -1].any()
    assert any(area.known.any() for area in squares)
    assert areas.pixels < 2 * 6 * 256**2
    # They are smaller than a crop: only the scene itself is left.
    assert len(make_samples(recipe_of(model), model.base.spec, areas.areas)) == COUNT


def test_planes_of_other_resolutions(detector: Model, make_image: MakeImage, runtime: Runtime) -> None:
    refiner = DetectionRefiner(net_of(detector.refiner), detector.labels, 2)
    glance = replace(detector, geometry=Geometry(cell=16, scan_downsample=4, refine_downsample=2), refiner=refiner)
    model, areas = answered(glance, make_image, runtime)
    samples = make_samples(recipe_of(model), model.base.spec, areas.areas)
    assert samples.pixels.shape[1] == model.base.spec.input_size(samples.target.shape[-1])
    assert {area.plane for area in areas.areas[1:]} == {2}


@pytest.mark.parametrize("shape", [(40, 40), (7, 40), (5, 6)])
def test_crops_lie_in_the_map_as_far_as_they_fit(shape: tuple[int, int]) -> None:
    for corner in np.random.default_rng(0).integers(-50, 50, (50, 2)):
        moved = within(corner, 8, shape)
        for start, asked, size in zip(moved, corner, shape, strict=True):
            if size >= 8:
                assert 0 <= start <= size - 8
                assert start == asked or asked < 0 or asked > size - 8
            else:
                assert start <= 0
                assert start + 8 >= size
