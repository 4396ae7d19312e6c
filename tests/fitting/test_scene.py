"""Annotations drawn on cells: what the nets are trained towards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine.annotations.read import AnnotationError, read_annotations
from coarse2fine.fitting.crops import turn_boxes, turn_planes
from coarse2fine.fitting.geometry import (
    Sizes,
    base_spec,
    choose_geometry,
    find_labels,
    largest_side,
    measure,
    perhaps_areas,
    refiner_spec,
    smallest_side,
)
from coarse2fine.fitting.hold_out import check_objects, hold_back
from coarse2fine.fitting.scene import PART, Scene, Targets
from coarse2fine.model import Geometry
from coarse2fine.models.box_head import BOX_CHANNELS, detection_loss, read_detections
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.refiners.protocol import Label
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.orientation import Turn

CELL = 8
LABELS = (Label("left"), Label("right"))
TURNS = [Turn(t, y, x) for t in (False, True) for y in (False, True) for x in (False, True)]

Shape = tuple[str, float, float, float, float]  # label, y, x, height, width; a point where the height is 0


def feature(label: str, ring: list[list[float]]) -> dict[str, Any]:
    geometry: dict[str, Any] = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
    if len(ring) == 1:
        geometry = {"type": "Point", "coordinates": ring[0]}
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": label}}}


def rectangle(shape: Shape) -> dict[str, Any]:
    label, y, x, h, w = shape
    if not h:
        return feature(label, [[x, y]])
    return feature(label, [[x, y], [x + w, y], [x + w, y + h], [x, y + h]])


def scene(*shapes: Shape, side: int = 192, labels: tuple[Label, ...] = LABELS, largest: float = 100) -> Scene:
    collection = {"type": "FeatureCollection", "features": [rectangle(s) for s in shapes]}
    image = open_image(np.zeros((side, side), np.uint8))
    annotations = read_annotations(collection, full_shape=(side, side))
    return Scene(image, annotations, labels, fine_cell=CELL, largest=largest, nominal=20)


def ideal_output(t: Targets) -> torch.Tensor:
    """What a perfect net would answer."""
    return torch.from_numpy(np.concatenate([np.where(t.classes > 0, 9.0, -9.0), t.boxes]).astype(np.float32))[None]


@given(
    st.sampled_from(["left", "right"]),
    st.floats(0, 150),
    st.floats(0, 150),
    st.floats(1, 42),
    st.floats(1, 42),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_an_object_is_found_again_in_the_ideal_answer(label: str, y: float, x: float, h: float, w: float) -> None:
    t = scene((label, y, x, h, w)).draw(Box(0, 0, 24, 24))
    found = read_detections(ideal_output(t), np.zeros((1, 2), np.int64), 0.5)
    assert len(found) >= 1
    assert {LABELS[k].name for k in found.labels.tolist()} == {label}
    wanted = np.array([y, x, y + h, x + w])
    np.testing.assert_allclose(found.boxes * CELL, np.broadcast_to(wanted, found.boxes.shape), atol=1e-3)
    assert t.boxed[found.cells[:, 0], found.cells[:, 1]].all()
    assert np.all(t.valid[:, t.classes.max(axis=0) > 0][LABELS.index(Label(label))] == 1)
    nearest = (np.array([y + h / 2, x + w / 2]) // CELL).astype(int)
    assert (np.abs(found.cells - nearest).max(axis=1) <= 1).any()


def test_the_ideal_answer_has_no_loss() -> None:
    t = scene(("left", 30, 40, 20, 30), ("right", 100, 90, 16, 16)).draw(Box(0, 0, 24, 24))
    parts = [torch.from_numpy(p)[None] for p in (t.classes, t.valid, t.boxes, t.boxed)]
    out = ideal_output(t)
    best = float(detection_loss(out, *parts))
    assert best < 0.2
    shifted = out.clone()
    shifted[:, -BOX_CHANNELS:] += 0.5
    assert float(detection_loss(shifted, *parts)) > best + 0.1
    assert float(detection_loss(-out, *parts)) > best + 5


def test_points_teach_their_place_and_the_nominal_size() -> None:
    t = scene(("left", 50, 60, 0, 0)).draw(Box(0, 0, 24, 24))
    assert t.boxed.sum() == t.classes[0].sum() >= 1
    found = read_detections(ideal_output(t), np.zeros((1, 2), np.int64), floor=0.5)
    for box in found.boxes * CELL:
        np.testing.assert_allclose(box, (40, 50, 60, 70), atol=1e-3)


def test_near_misses_and_large_objects_are_neither_sought_nor_held_against() -> None:
    small = scene(("left", 80, 80, 24, 24)).draw(Box(0, 0, 24, 24))
    open_cells = (small.valid[0] == 0).sum()
    assert open_cells > 0
    assert (small.valid[1] == 1).all()
    large = scene(("left", 20, 20, 150, 150), largest=100).draw(Box(0, 0, 24, 24))
    assert large.classes.sum() == 0
    assert large.valid[0, 11, 11] == 0


def test_a_small_object_inside_a_large_one_has_the_last_word() -> None:
    t = scene(("left", 20, 20, 90, 90), ("right", 60, 60, 12, 12)).draw(Box(0, 0, 24, 24))
    found = read_detections(ideal_output(t), np.zeros((1, 2), np.int64), 0.5)
    right = found.take(found.labels == 1)
    assert len(right)
    np.testing.assert_allclose(right.boxes * CELL, np.broadcast_to([60, 60, 72, 72], right.boxes.shape), atol=1e-3)
    assert t.classes.max(axis=0).sum() == t.classes.sum()  # one class a cell


@given(st.integers(-30, 20), st.integers(-30, 20), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_block_is_a_view_of_the_whole(y: int, x: int, h: int, w: int) -> None:
    s = scene(("left", 30, 40, 20, 30), ("right", 100, 90, 50, 16), ("left", 0, 150, 30, 42))
    whole, part = s.draw(Box(-40, -40, 80, 80)), s.draw(Box(y, x, y + h, x + w))
    rows, columns = slice(y + 40, y + 40 + h), slice(x + 40, x + 40 + w)
    np.testing.assert_array_equal(part.classes, whole.classes[:, rows, columns])
    np.testing.assert_array_equal(part.valid, whole.valid[:, rows, columns])
    np.testing.assert_array_equal(part.boxed, whole.boxed[rows, columns])
    np.testing.assert_allclose(part.boxes, whole.boxes[:, rows, columns], atol=1e-6)


def test_ignored_areas_held_back_parts_and_the_outside_do_not_count() -> None:
    s = scene(("left", 20, 20, 16, 16), ("Ignore*", 0, 0, 64, 64), side=8 * 2 * PART)
    t = s.draw(Box(-2, -2, 2 * PART, 2 * PART))
    assert t.valid[:, :2].sum() == t.valid[:, :, :2].sum() == 0
    assert t.valid[:, 2:10, 2:10].sum() == t.classes.sum() == t.boxed.sum() == 0
    assert t.valid[:, 10:, 10:].all()
    s.held[1, 0] = True
    t = s.draw(Box(0, 0, 2 * PART, 2 * PART))
    assert t.valid[:, PART:, :PART].sum() == 0
    assert t.valid[:, PART:, PART:].all()
    np.testing.assert_array_equal(
        s.known(Box(0, 0, 2 * PART, 2 * PART), held=True), np.kron([[0, 0], [1, 0]], np.ones((PART, PART)))
    )


def test_only_regions_count_where_there_are_any() -> None:
    t = scene(("Region*", 40, 80, 48, 32), ("left", 56, 88, 16, 16), ("right", 150, 20, 16, 16)).draw(Box(0, 0, 24, 24))
    outside = np.ones((24, 24), bool)
    outside[5:11, 10:14] = False
    assert t.valid[:, outside].sum() == 0
    assert t.classes[0].sum() > 0
    assert t.classes[1].sum() == 0
    assert t.valid[1][~outside].all()


def test_areas_are_drawn_cell_by_cell() -> None:
    labels = (Label("lake", "area"), Label("left"))
    t = scene(("lake", 40, 40, 100, 60), ("left", 60, 60, 16, 16), labels=labels).draw(Box(0, 0, 24, 24))
    centres = (np.arange(24) + 0.5) * CELL
    inside = ((centres > 40) & (centres < 140))[:, None] & ((centres > 40) & (centres < 100))[None]
    np.testing.assert_array_equal(t.classes.max(axis=0) > 0, inside)
    assert t.classes[1].sum() > 0
    assert t.boxed.sum() == t.classes[1].sum()


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_turning_pixels_and_targets_agrees_with_turned_annotations(turn: Turn) -> None:
    side = 192
    shapes: list[Shape] = [("left", 30, 41, 20, 33), ("right", 101, 90, 50, 16), ("left", 7, 150, 31, 38)]

    def moved(shape: Shape) -> Shape:
        label, y, x, h, w = shape
        if turn.transpose:
            y, x, h, w = x, y, w, h
        return label, side - y - h if turn.mirror_y else y, side - x - w if turn.mirror_x else x, h, w

    def paint(some: list[Shape]) -> NDArray[np.float32]:
        canvas = np.zeros((1, side, side), np.float32)
        for i, (_, y, x, h, w) in enumerate(some):
            canvas[0, int(y) : int(y + h), int(x) : int(x + w)] = i + 1
        return canvas

    block = Box(0, 0, side // CELL, side // CELL)
    before, after = scene(*shapes).draw(block), scene(*map(moved, shapes)).draw(block)
    np.testing.assert_array_equal(turn_planes(paint(shapes), turn), paint([moved(s) for s in shapes]))
    np.testing.assert_array_equal(turn_planes(before.classes, turn), after.classes)
    np.testing.assert_array_equal(turn_planes(before.valid, turn), after.valid)
    np.testing.assert_array_equal(turn_planes(before.boxed[None], turn)[0], after.boxed)
    np.testing.assert_allclose(turn_boxes(before.boxes, turn), after.boxes, atol=1e-5)


# What is held back


def many(count: int, side: int) -> list[Scene]:
    rng = np.random.default_rng(0)
    spots = rng.uniform(20, side - 40, (count, 12, 2)).tolist()
    return [scene(*(("left", y, x, 10, 10) for y, x in own), side=side) for own in spots]


@pytest.mark.parametrize(("count", "side"), [(1, 400), (1, 600), (1, 2000), (3, 400), (9, 400), (20, 300)])
def test_some_is_held_back_and_most_trains(count: int, side: int) -> None:
    for seed in range(5):
        scenes = many(count, side)
        hold_back(scenes, 0.2, np.random.default_rng(seed))
        held = np.concatenate([s.held.ravel() for s in scenes])
        assert held.sum() < len(held)
        assert held.any() or len(held) == 1
        assert held.mean() <= 0.34 or len(held) < 4
        if count >= 8:
            assert all(s.held.all() or not s.held.any() for s in scenes)


@pytest.mark.parametrize("count", [1, 9])
def test_what_alone_holds_objects_trains(count: int) -> None:
    for seed in range(8):
        scenes = [scene(side=1200) for _ in range(count - 1)] + [scene(("left", 9, 9, 10, 10), side=1200)]
        hold_back(scenes, 0.2, np.random.default_rng(seed))
        assert not scenes[-1].held[0, 0]
        assert any(s.held.any() for s in scenes)


# How fine to look


def annotated(*shapes: Shape, side: int = 4000) -> Any:
    collection = {"type": "FeatureCollection", "features": [rectangle(s) for s in shapes]}
    return read_annotations(collection, full_shape=(side, side))


def drawn(*sides: float, labels: tuple[str, ...] = ()) -> Sizes:
    """Square boxes of such sides."""
    table = np.repeat(np.array(sides)[:, None], 2, axis=1)
    return Sizes(table, np.array(labels or ["left"] * len(sides)), 32.0)


@given(st.floats(2, 3000), st.floats(1, 4), st.floats(1, 4))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_every_size_of_object_has_nets_that_fit_together(small: float, middle: float, large: float) -> None:
    sizes = drawn(*([small] * 30 + [small * middle] * 40 + [small * middle * large] * 30))
    geometry = choose_geometry(sizes, LABELS)
    base, refiner = base_spec(3, geometry), refiner_spec(3, LABELS, sizes, geometry)
    assert base.stride * geometry.scan_downsample == geometry.cell
    assert refiner.stride * geometry.refine_downsample == geometry.fine_cell
    assert geometry.scan_downsample > geometry.refine_downsample or geometry.cell == CELL
    # The scan must be far cheaper than what it saves.
    assert base.macs_per_cell < 0.2 * refiner.macs_per_cell
    ConvStack(base)


def test_classes_of_large_irregular_polygons_are_areas() -> None:
    lake = feature("lake", [[0, 0], [900, 100], [700, 900], [50, 600]])
    big_box, cell = rectangle(("slide", 10, 10, 800, 800)), rectangle(("cell", 10, 10, 20, 20))
    point = rectangle(("mark", 5, 5, 0, 0))
    known = read_annotations({"type": "FeatureCollection", "features": [lake, big_box, cell, point]})
    kinds = {label.name: label.kind for label in find_labels([known])}
    assert kinds == {"cell": "object", "lake": "area", "mark": "object", "slide": "object"}
    only = find_labels([read_annotations(lake)])
    assert choose_geometry(measure([read_annotations(lake)], only, None), only) == Geometry(32, 16, 4)


def test_points_take_their_size_from_the_user_or_from_what_is_drawn() -> None:
    row: list[Shape] = [("left", 100, 100 + 40 * i, 0, 0) for i in range(10)]
    sizes = measure([annotated(*row)], LABELS, 12.0)
    assert (sizes.small, sizes.median, sizes.large, sizes.nominal, sizes.guess) == (12, 12, 12, 12, "")
    mixed = measure([annotated(*row, ("right", 500, 500, 10, 10), ("right", 600, 500, 30, 30))], LABELS, None)
    assert mixed.nominal == pytest.approx(20)
    assert "2 objects that are drawn" in mixed.guess


@pytest.mark.parametrize("seed", range(3))
def test_points_are_guessed_so_small_that_few_overlap(seed: int) -> None:
    """Discs of one size packed at random: of boxes of the side taken, at most one in eight touches another."""
    rng = np.random.default_rng(seed)
    spots = rng.uniform(0, 2000, (400, 2))
    spots = spots[[i for i, p in enumerate(spots) if (np.hypot(*(spots[:i] - p).T) >= 40).all()]]
    sizes = measure([annotated(*(("left", y, x, 0, 0) for y, x in spots.tolist()))], LABELS, None)
    gaps = np.sort(np.hypot(*(spots[:, None] - spots[None]).transpose(2, 0, 1)), axis=1)[:, 1]
    assert 40 <= sizes.nominal < np.median(gaps)
    assert (gaps < sizes.nominal).mean() <= 1 / 8
    assert "points" in sizes.guess


def test_sparse_points_do_not_tell_how_large_they_are() -> None:
    spots = np.random.default_rng(0).uniform(0, 2000, (25, 2))
    sizes = measure([annotated(*(("left", y, x, 0, 0) for y, x in spots.tolist()))], LABELS, None)
    assert (sizes.nominal, sizes.guess[:12]) == (32, "a usual size")


def test_classes_that_are_named_are_areas() -> None:
    def blob(label: str, side: float) -> dict[str, object]:
        ring = [[0, 0], [side, 0], [side, side], [0.3 * side, 0.6 * side], [0, 0]]
        return {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"classification": {"name": label}},
        }

    shapes = [blob("pond", side) for side in (60, 90, 150, 300, 420)] + [blob("cell", side) for side in (20, 21, 22)]
    known = read_annotations({"type": "FeatureCollection", "features": shapes})
    labels = find_labels([known])
    assert {label.kind for label in labels} == {"object"}
    note = perhaps_areas([known])
    assert note is not None
    assert "pond (72 to 372 px); areas=['pond'] (--areas)" in note
    named = find_labels([known], ["pond"])
    assert {label.name: label.kind for label in named} == {"cell": "object", "pond": "area"}
    assert perhaps_areas([known], ["pond"]) is None
    with pytest.raises(AnnotationError, match="'lake' is not, only cell, pond"):
        find_labels([known], ["lake"])


def test_a_point_marked_twice_is_no_measure_and_a_lonely_one_is_of_usual_size() -> None:
    twice: list[Shape] = [("left", 100 + 50 * (i // 2), 100, 0, 0) for i in range(20)]
    assert measure([annotated(*twice)], LABELS, None).nominal == 32
    alone = measure([annotated(("left", 100, 100, 0, 0))], LABELS, None)
    assert (alone.nominal, alone.guess[:12]) == (32, "a usual size")


@pytest.mark.parametrize(
    ("sizes", "refine"),
    [
        pytest.param([8] * 15 + [200] * 85, 4, id="some small, most large"),
        pytest.param([8] * 85 + [200] * 15, 1, id="most small, some large"),
        pytest.param([20] * 100, 1, id="all small"),
        pytest.param([200] * 100, 8, id="all large"),
        pytest.param([8] * 95 + [60] * 5, 1, id="few a little larger"),
    ],
)
def test_the_plane_is_that_which_leaves_out_least(sizes: list[int], refine: int) -> None:
    assert choose_geometry(drawn(*map(float, sizes)), LABELS).refine_downsample == refine


def test_a_class_is_saved_before_many_objects_are() -> None:
    sizes = drawn(*[8.0] * 10, *[120.0] * 90, labels=("small",) * 10 + ("large",) * 90)
    labels = (Label("large"), Label("small"))
    geometry = choose_geometry(sizes, labels)
    spec = refiner_spec(3, labels, sizes, geometry)
    short = sizes.sides[:, 0]
    sought = (short <= largest_side(spec, geometry.refine_downsample)) & (
        short >= smallest_side(geometry.refine_downsample)
    )
    assert set(sizes.labels[sought].tolist()) == {"large", "small"}


def test_what_is_left_out_is_counted_by_class_and_too_much_is_refused() -> None:
    shapes: list[Shape] = [("left", 30.0 * i, 10, 16, 16) for i in range(12)]
    shapes += [("right", 30.0 * i, 60, side, side) for i, side in enumerate([16] * 6 + [90, 91, 3])]
    known = annotated(*shapes, side=400)
    image = open_image(np.zeros((400, 400), np.uint8))

    def made(largest: float, smallest: float) -> list[Scene]:
        options: dict[str, float] = {"largest": largest, "smallest": smallest, "nominal": 8}
        return [Scene(image, known, LABELS, fine_cell=CELL, **options)]

    assert check_objects(made(200, 0), 200, 0, strict=True) == ()
    lost = check_objects(made(80, 4), 80, 4, strict=True)
    assert [(each.label, each.objects, each.too_large, each.too_small) for each in lost] == [("right", 9, 2, 1)]
    assert str(lost[0]) == "3 of 9 right (2 too large and 1 too small)"
    for limits in ((15, 4), (80, 17), (10, 0)):
        with pytest.raises(AnnotationError, match=r"9 right .*a plane of their own"):
            check_objects(made(*limits), *limits, strict=True)
    assert check_objects(made(200, 16.5), 200, 16.5, strict=False)[0].too_small == 12
    with pytest.raises(AnnotationError, match="left out"):
        check_objects(made(10, 4), 10, 4, strict=False)


def test_an_annotation_outside_its_image_is_refused() -> None:
    with pytest.raises(AnnotationError, match="outside the image"):
        scene(("left", 500, 500, 10, 10))


def test_a_scene_is_known_by_its_annotations() -> None:
    first = ("left", 20.0, 20.0, 16.0, 16.0)
    digests = {scene(first).digest, scene(("right", *first[1:])).digest, scene((*first[:4], 17.0)).digest}
    assert len(digests) == 3
    assert scene(first).digest in digests
