import itertools
import json
import sys

import cv2
import imagecodecs
import numpy as np
import pytest
import shapely.geometry
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine.demo import digit_scene
from coarse2fine.demo.digit_scene import DigitScene
from coarse2fine.demo.ink_scene import PlacedObject
from coarse2fine.tiling.geometry import Box

pytest.importorskip("sklearn", reason="the handwriting comes with scikit-learn")

HEIGHT, WIDTH = 850, 1000
KINDS = ("digit", "scrambled", "stroke")


def whole(scene: DigitScene) -> NDArray[np.uint8]:
    return scene.block(Box(0, 0, scene.height, scene.width))


@pytest.fixture(scope="module")
def scene() -> DigitScene:
    return DigitScene(HEIGHT, WIDTH, digits=40, clutter=40, seed=7, handwriting="held-out")


@pytest.fixture(scope="module")
def pixels(scene: DigitScene) -> NDArray[np.uint8]:
    return whole(scene)


@pytest.fixture(scope="module")
def ink(pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
    """What the marks of `scene` add to its ground."""
    ground = whole(DigitScene(HEIGHT, WIDTH, digits=0, clutter=0, seed=7, handwriting="train"))
    return (pixels.astype(np.int16) - ground)[:, :, 0]


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    y0, x0 = draw(st.integers(0, HEIGHT - 1)), draw(st.integers(0, WIDTH - 1))
    return Box(y0, x0, draw(st.integers(y0 + 1, HEIGHT)), draw(st.integers(x0 + 1, WIDTH)))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(box=boxes())
def test_pixels_do_not_depend_on_the_block(scene: DigitScene, pixels: NDArray[np.uint8], box: Box) -> None:
    block = scene.block(box)
    assert block.dtype == np.uint8
    np.testing.assert_array_equal(block, pixels[box.y0 : box.y1, box.x0 : box.x1])


def test_blocks_agree_far_out_across_the_periods_of_the_ground() -> None:
    scene = DigitScene(100_000, 100_000, digits=300, clutter=0, seed=1, handwriting="train")
    # 32768 is the period of the slow fields; the mark makes sure that ink straddles blocks too.
    mark = scene.objects[150].full_box
    for y, x in ((32768, 65536), (99_000, 98_000), (mark.y0 + 9, mark.x0 + 9)):
        box = Box(y - 350, x - 411, y + 300, x + 300)
        ys, xs = (box.y0, y - 60, y, box.y1), (box.x0, x, x + 3, box.x1)
        strips = [
            np.hstack([scene.block(Box(y0, x0, y1, x1)) for x0, x1 in itertools.pairwise(xs)])
            for y0, y1 in itertools.pairwise(ys)
        ]
        np.testing.assert_array_equal(np.vstack(strips), scene.block(box))


def test_the_seed_decides_everything(scene: DigitScene, pixels: NDArray[np.uint8]) -> None:
    again = DigitScene(HEIGHT, WIDTH, digits=40, clutter=40, seed=7, handwriting="held-out")
    other = DigitScene(HEIGHT, WIDTH, digits=40, clutter=40, seed=8, handwriting="held-out")
    assert again.objects == scene.objects
    np.testing.assert_array_equal(whole(again), pixels)
    assert other.objects != scene.objects
    assert np.mean(whole(other) != pixels) > 0.8


def test_marks_are_counted_apart_and_inside(scene: DigitScene) -> None:
    assert (len(scene.objects), len(scene.clutter)) == (40, 40)
    assert {m.label for m in scene.objects} <= set("0123456789")
    assert {m.label for m in scene.clutter} == {"scrambled", "stroke"}
    marks = [m.full_box for m in scene.objects + scene.clutter]
    for box in marks:
        assert box.intersect(Box(0, 0, HEIGHT, WIDTH)) == box
        assert 26 <= max(box.height, box.width) <= 48
    for one, other in itertools.combinations(marks, 2):
        assert one.expand(12).intersect(other) is None


def test_ink_lies_in_its_tight_boxes(scene: DigitScene, ink: NDArray[np.int16]) -> None:
    rest = ink.copy()
    for mark in scene.objects + scene.clutter:
        b = mark.full_box
        y, x = np.nonzero(rest[b.y0 : b.y1, b.x0 : b.x1])
        # At the very edge faint ink may meet ground of its own grey.
        assert max(y.min(), x.min(), b.height - 1 - y.max(), b.width - 1 - x.max()) <= 1
        rest[b.y0 : b.y1, b.x0 : b.x1] = 0
    assert not rest.any()


def test_about_a_third_of_the_digits_stand_in_rows() -> None:
    scene = DigitScene(16384, 16384, digits=300, clutter=0, seed=3, handwriting="train")
    boxes = [m.full_box for m in scene.objects]
    in_rows = {
        box
        for one, other in itertools.permutations(boxes, 2)
        if 14 <= other.x0 - one.x1 <= 20 and abs(other.y0 + other.y1 - one.y0 - one.y1) <= 14
        for box in (one, other)
    }
    assert 95 <= len(in_rows) <= 110


def test_digits_can_be_read_and_bear_the_right_label() -> None:
    """A nearest neighbour that knows only the other handwriting reads most digits off the scene."""
    scene = DigitScene(4096, 4096, digits=200, clutter=0, seed=5, handwriting="held-out")
    ground = whole(DigitScene(4096, 4096, digits=0, clutter=0, seed=5, handwriting="held-out"))
    difference = cv2.absdiff(whole(scene), ground)
    images, labels = digit_scene._handwriting("train")
    known = np.stack([_small(image, 0.3) for image in images])
    right = 0
    for mark in scene.objects:
        b = mark.full_box
        seen = _small(difference[b.y0 : b.y1, b.x0 : b.x1].astype(np.float32), 0)
        right += str(labels[np.argmin(((known - seen) ** 2).sum(axis=1))]) == mark.label
    assert right >= 0.85 * len(scene.objects)


def _small(image: NDArray[np.float32], threshold: float) -> NDArray[np.float32]:
    """Bring the ink to 8 x 8 and unit length."""
    y, x = np.nonzero(image > threshold)
    cut = image[y.min() : y.max() + 1, x.min() : x.max() + 1]
    flat = cv2.resize(cut, (8, 8), interpolation=cv2.INTER_AREA).ravel()
    return np.asarray(flat / np.linalg.norm(flat), np.float32)


def test_from_afar_clutter_measures_as_digits_do() -> None:
    scene = DigitScene(8192, 8192, digits=450, clutter=900, seed=2, handwriting="train")
    measures: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in KINDS}
    for box, mark in scene._marks:
        far = cv2.resize(np.pad(mark.alpha, 8), None, fx=1 / 8, fy=1 / 8, interpolation=cv2.INTER_AREA)
        sizes = (box.height, box.width, abs(mark.contrast), float(far.sum()), float(far.std()))
        measures["digit" if mark.label.isdigit() else mark.label].append(sizes)
    digit, scrambled, stroke = (np.mean(measures[kind], axis=0) for kind in KINDS)
    np.testing.assert_allclose(scrambled / digit, 1, atol=0.15)
    np.testing.assert_allclose(stroke / digit, 1, atol=0.15)
    assert 0.4 < len(measures["stroke"]) / 900 < 0.6


def test_ground_varies_and_compresses() -> None:
    scene = DigitScene(32768, 32768, digits=0, clutter=0, seed=4, handwriting="train")
    places = np.random.default_rng(0).integers(0, 32768 - 256, (60, 2)).tolist()
    crops = [scene.block(Box(y, x, y + 256, x + 256))[:, :, 0] for y, x in places]
    # Wood runs along x, sand is rough and paper smooth: the roughness along the axes tells them apart.
    rough = [np.abs(np.diff(c.astype(np.int16), axis=axis)).mean() for c in crops for axis in (0, 1)]
    along = np.reshape(rough, (-1, 2))
    assert along[:, 0].max() > 2 * along[:, 0].min()
    assert (along[:, 0] / along[:, 1]).max() > 1.5 * (along[:, 0] / along[:, 1]).min()
    mosaic = np.ascontiguousarray(np.vstack(crops))
    assert mosaic.size / len(imagecodecs.zstd_encode(mosaic.tobytes(), level=3)) > 1.8
    assert 10 < mosaic.std() < 40


def test_annotations_are_closed_boxes_in_x_y_order(scene: DigitScene) -> None:
    collection = json.loads(json.dumps(scene.annotations()))
    assert collection["type"] == "FeatureCollection"
    for feature, mark in zip(collection["features"], scene.objects, strict=True):
        b = mark.full_box
        polygon = shapely.geometry.shape(feature["geometry"])
        assert polygon.bounds == (b.x0, b.y0, b.x1, b.y1)
        assert polygon.area == b.area
        assert feature["properties"] == {"objectType": "annotation", "classification": {"name": mark.label}}


def test_the_two_handwritings_are_disjoint() -> None:
    train, train_labels = digit_scene._handwriting("train")
    rest, _ = digit_scene._handwriting("held-out")
    assert (len(train), len(rest)) == (1300, 497)
    assert not {i.tobytes() for i in train} & {i.tobytes() for i in rest}
    assert set(train_labels.tolist()) == set(range(10))


def test_a_scene_may_be_a_single_pixel_or_just_hold_a_mark() -> None:
    assert whole(DigitScene(1, 1, digits=0, clutter=0, seed=0, handwriting="train")).shape == (1, 1, 1)
    one = DigitScene(48, 48, digits=1, clutter=0, seed=0, handwriting="train").objects
    assert isinstance(one[0], PlacedObject)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digits": 500}, r"found room for only \d+ of 500 marks in a scene of 300 x 300"),
        ({"height": 20, "digits": 1}, "found room for only 0 of 1"),
        ({"width": 0}, "at least 1 pixel, got 300 x 0"),
        ({"clutter": -1}, "clutter=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"handwriting": "mine"}, "'train' or 'held-out', got 'mine'"),
    ],
)
def test_impossible_scenes_are_refused(change: dict[str, object], message: str) -> None:
    asked: dict[str, object] = {"height": 300, "width": 300, "digits": 0, "clutter": 0, "seed": 0}
    with pytest.raises(ValueError, match=message):
        DigitScene(**(asked | {"handwriting": "train"} | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("box", [Box(-1, 0, 5, 5), Box(0, 0, 5, WIDTH + 1), Box(HEIGHT, 0, HEIGHT + 1, 5)])
def test_blocks_outside_are_refused(scene: DigitScene, box: Box) -> None:
    with pytest.raises(ValueError, match=f"inside the scene of {HEIGHT} x {WIDTH}"):
        scene.block(box)


def test_missing_scikit_learn_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setattr(digit_scene, "_handwriting", digit_scene._handwriting.__wrapped__)
    with pytest.raises(ImportError, match=r"pip install \"coarse2fine\[demo\]\""):
        DigitScene(300, 300, digits=1, clutter=0, seed=0, handwriting="train")
    whole(DigitScene(30, 30, digits=0, clutter=0, seed=0, handwriting="train"))
