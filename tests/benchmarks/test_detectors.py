"""The benchmark of detectors: its figures, its nets and their training."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from benchmarks.detectors import nets, run
from benchmarks.detectors.nets import RCNN, RETINA, Shape, detector, recalibrate, timm_backbone
from benchmarks.detectors.precision import MISSED, Outcomes, average_precision
from benchmarks.detectors.training import Drawing, Lesson, train, turned
from numpy.typing import NDArray

from coarse2fine import Model, Region, expert, load_model
from coarse2fine.annotations.annotated import AnnotatedArea
from coarse2fine.annotations.read import read_annotations
from coarse2fine.bench.data import BenchScene, digit_split
from coarse2fine.bench.score import Labelled
from coarse2fine.models.errors import ModelError
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.orientation import Turn

needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
Box = tuple[float, float, float, float]


def curve(*rights: int) -> tuple[Any, Any]:
    """Finds in order of falling score, 1 for right ones."""
    return np.linspace(0.9, 0.1, len(rights)).astype(np.float32), np.array(rights, bool)


@pytest.mark.parametrize(
    ("rights", "objects", "area"),
    [
        ((1, 1), 2, 1.0),
        ((1, 1), 4, 0.5),
        ((0, 1), 1, 0.5),
        # Recall 1/2 at precision 1, and 1 at 2/3: the dip to 1/2 between them is filled.
        ((1, 0, 1), 2, 0.5 + 0.5 * 2 / 3),
        # Precision rises again, so it is 2/3 from the beginning.
        ((0, 1, 1), 2, 2 / 3),
        ((0, 0), 3, 0.0),
        ((), 3, 0.0),
    ],
)
def test_average_precision_by_hand(rights: tuple[int, ...], objects: int, area: float) -> None:
    assert average_precision(*curve(*rights), objects) == pytest.approx(area)


def test_equal_scores_have_one_threshold() -> None:
    # In this order the right one would come first; together they are one point, of precision 1/2.
    assert average_precision(np.full(2, 0.5, np.float32), np.array([True, False]), 1) == 0.5


def annotated(boxes: list[tuple[str, Box]]) -> dict[str, Any]:
    def feature(name: str, y0: float, x0: float, y1: float, x1: float) -> dict[str, Any]:
        ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}

    return {"type": "FeatureCollection", "features": [feature(name, *box) for name, box in boxes]}


def scattered(seed: int) -> tuple[list[tuple[str, Box]], list[Region]]:
    """Objects of two classes on a grid, and finds that lie more or less upon them, or nowhere."""
    rng, objects, finds = np.random.default_rng(seed), [], []
    for y, x in np.ndindex(5, 5):
        name, low = "ab"[int(rng.integers(2))], np.array([60.0 * y + 10, 60.0 * x + 10])
        high = low + rng.uniform(15, 30, 2)
        objects.append((name, (low[0], low[1], high[0], high[1])))
        for _ in range(int(rng.integers(3))):
            a, b = low + rng.normal(0, 4, 2), high + rng.normal(0, 4, 2)
            label = name if rng.random() < 0.8 else "ab"[int(rng.integers(2))]
            box = np.concatenate([a, b]).clip(0, 300)
            finds.append(Region(label, float(rng.random()), (box[0], box[1], box[2], box[3])))
    return objects, finds


def test_average_precision_equals_that_of_supervision(detector: Model) -> None:
    sv = pytest.importorskip("supervision")
    metrics = pytest.importorskip("supervision.metrics")
    oracle, ours = metrics.MeanAveragePrecision(), []
    for seed in range(4):
        objects, finds = scattered(seed)

        def detections(boxes: list[Box], labels: list[str], scores: list[float] | None = None) -> Any:
            xyxy = np.array(boxes, np.float32)[:, [1, 0, 3, 2]]
            numbers = np.array(["ab".index(label) for label in labels])
            return sv.Detections(xyxy=xyxy, class_id=numbers, confidence=None if scores is None else np.array(scores))

        found = detections([f.full_box for f in finds], [f.label for f in finds], [f.score for f in finds])
        oracle.update([found], [detections([box for _, box in objects], [name for name, _ in objects])])
        ours.append(Outcomes.of(Labelled(read_annotations(annotated(objects)), detector), finds, 0.5))
    # It reads the curve at 101 recalls.
    assert Outcomes.together(ours).average_precision() == pytest.approx(oracle.compute().map50, abs=0.011)


def test_best_f1_and_recall_by_size(detector: Model) -> None:
    objects: list[tuple[str, Box]] = [("a", (0, 0, 10, 10)), ("a", (100, 100, 140, 140)), ("a", (200, 200, 240, 240))]
    finds = [
        Region("a", 0.9, (102, 101, 142, 141)),
        Region("a", 0.8, (300, 300, 310, 310)),
        Region("a", 0.7, (1, 1, 11, 11)),
        Region("a", 0.2, (400, 400, 410, 410)),
        Region("a", 0.1, (200, 200, 215, 240)),  # its centre is near enough, its box is not
    ]
    labelled = Labelled(read_annotations(annotated(objects)), detector)
    by_centres, by_boxes = Outcomes.of(labelled, finds), Outcomes.of(labelled, finds, 0.5)
    # At 0.1 three of five are right, F1 6/8; at 0.7 two of three, 4/6.
    best = by_centres.best()
    assert (best.threshold, best.recall, best.precision, best.f1) == pytest.approx((0.1, 1.0, 0.6, 0.75))
    assert by_boxes.best().f1 == pytest.approx(2 / 3)
    assert by_boxes.object_scores.tolist() == pytest.approx([0.7, 0.9, MISSED])
    assert by_boxes.recall(0.7) == pytest.approx(2 / 3)
    assert by_boxes.recall(0.7, 20.0) == 0.5
    assert by_boxes.recall(0.8, 0.0, 20.0) == 0.0
    assert math.isnan(by_boxes.recall(0.5, 50.0))


def test_each_object_is_found_once_and_by_its_class(detector: Model) -> None:
    objects: list[tuple[str, Box]] = [("a", (0, 0, 20, 20)), ("b", (0, 60, 20, 80))]
    twice = [Region("a", s, (0, 0, 20, 20)) for s in (0.6, 0.9)]
    finds = [*twice, Region("a", 0.8, (0, 60, 20, 80))]
    outcomes = Outcomes.of(Labelled(read_annotations(annotated(objects)), detector), finds, 0.5)
    assert outcomes.right.tolist() == [False, True, False]
    assert outcomes.object_scores.tolist() == pytest.approx([0.9, MISSED])


def test_boxes_turn_with_their_pixels() -> None:
    pixels = np.zeros((20, 20), np.uint8)
    pixels[2:5, 8:17] = 1
    for flags in np.ndindex(2, 2, 2):
        turn = Turn(*map(bool, flags))
        y, x = np.nonzero(turn.apply(pixels))
        expected = [[y.min(), x.min(), y.max() + 1, x.max() + 1]]
        assert turned(np.array([[2.0, 8, 5, 17]]), turn, 20).tolist() == expected


def test_a_crop_holds_the_objects_with_their_centre_in_it_and_greys_what_is_ignored() -> None:
    boxes = [("a", (10.0, 10.0, 30.0, 30.0)), ("a", (35.0, 35.0, 55.0, 55.0)), ("Ignore*", (0.0, 40.0, 20.0, 60.0))]
    truth = read_annotations(annotated(boxes))
    with open_image(np.full((64, 64), 200, np.uint8)) as image:
        own = np.array([each.full_bounds for each in truth.objects])
        lesson = Lesson(image, own, np.array([0, 1]), AnnotatedArea(truth))
        pixels, found, labels = lesson.crop(15, 15, 40)
    assert found.tolist() == [[0, 0, 15, 15], [20, 20, 40, 40]]
    assert labels.tolist() == [0, 1]
    assert pixels.shape == (40, 40, 3)
    assert (pixels[:5, 25:] == 128).all()
    assert (pixels[5:] == 200).all()
    assert (pixels[:, :25] == 200).all()


@pytest.mark.parametrize(
    ("name", "side", "scale", "first", "last"),
    [
        (RCNN, 12.0, 2.0, 3, 3),
        (RCNN, 4.0, 2.0, 2, 2),
        (RETINA, 4.0, 2.0, 3, 3),
        (RCNN, 100.0, 0.25, 3, 3),
        (RCNN, 900.0, 0.25, 5, 5),
    ],
)
def test_the_scale_brings_objects_to_the_anchors(name: str, side: float, scale: float, first: int, last: int) -> None:
    shape = Shape.of(name, np.full((9, 2), side))
    assert (shape.scale, shape.first, shape.last, shape.ratios) == (scale, first, last, (1.0,))
    assert (shape.tile + 2 * shape.context) * scale % 32 == 0


def test_long_objects_have_long_anchors() -> None:
    assert Shape.of(RCNN, np.tile([10.0, 40.0], (9, 1))).ratios == (0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def squares() -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Bright squares of 24 px on a dark ground, and their boxes."""
    rng = np.random.default_rng(3)
    pixels, boxes = rng.normal(60, 5, (320, 320)).clip(0, 255).astype(np.uint8), []
    for y, x in np.ndindex(5, 5):
        top, left = 64 * y + int(rng.integers(4, 36)), 64 * x + int(rng.integers(4, 36))
        pixels[top : top + 24, left : left + 24] = 220
        boxes.append((top, left, top + 24, left + 24))
    return pixels, np.array(boxes, np.float64)


def test_targets_frame_the_objects_of_turned_crops(squares: tuple[NDArray[np.uint8], NDArray[np.float64]]) -> None:
    pixels, boxes = squares
    seen = 0
    with open_image(pixels) as image:
        lesson = Lesson(image, boxes, np.full(len(boxes), 2), None)
        drawing = Drawing([lesson], 100, np.full(3, 0.2, np.float32), 1)
        for seed in range(8):
            crop, target = drawing.draw(np.random.default_rng(seed))
            assert crop.shape == (3, 100, 100)
            assert (target["labels"] == 3).all()
            bright = crop[0] > (crop.min() + crop.max()) / 2
            for x0, y0, x1, y1 in target["boxes"].int().tolist():
                assert bright[y0:y1, x0:x1].all()
                assert bright[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2].float().mean() < 1 or (y1 - y0) < 24
                seen += 1
    assert seen > 8


@pytest.mark.slow
@needs_torchvision
@pytest.mark.parametrize("name", [RCNN, RETINA])
def test_training_lowers_the_loss(
    name: str, squares: tuple[NDArray[np.uint8], NDArray[np.float64]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nets, "_CROP", 96)
    shape, std = Shape.of(name, np.full((9, 2), 24.0)), np.full(3, 0.2, np.float32)
    with torch.random.fork_rng(), open_image(squares[0]) as image:
        torch.manual_seed(0)
        net: Any = detector(name, shape, 1, np.full(3, 0.3, np.float32), std)
        lesson = Lesson(image, squares[1], np.zeros(len(squares[1]), np.int64), None)
        drawing = Drawing([lesson], shape.crop, std, int(name == RCNN))
        images, targets = zip(*(drawing.draw(np.random.default_rng(seed)) for seed in range(4)), strict=True)

        def loss() -> float:
            with torch.no_grad():
                return float(torch.stack(list(net.train()(list(images), list(targets)).values())).sum())

        before = loss()
        assert train(net, drawing, 5.0, 0, pretrained=False) > 3
        assert not net.training
        assert loss() < 0.7 * before


def test_an_expert_finds_each_object_once_over_its_tiles(
    squares: tuple[NDArray[np.uint8], NDArray[np.float64]],
) -> None:
    pixels, boxes = squares

    def bright(tiles: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
        found = []
        for tile in tiles:
            _, _, stats, _ = cv2.connectedComponentsWithStats((tile[..., 0] > 140).astype(np.uint8))
            found.append(np.array([(x, y, x + w, y + h, 0.8, 0) for x, y, w, h, _ in stats[1:]], float).reshape(-1, 6))
        return found

    scene = BenchScene("squares", pixels, {}, read_annotations(annotated([])))
    finds = run.expert_finds(expert(bright, tile=64, context=24, labels=["square"]), scene)
    assert sorted(find.full_box for find in finds) == sorted(map(tuple, boxes.tolist()))
    assert {(find.label, round(find.score, 3)) for find in finds} == {("square", 0.8)}


@needs_torchvision
def test_weights_of_timm_give_what_timm_gives(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    net = timm.create_model("mobilenetv2_100", pad_type="same", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    whole = timm.create_model("mobilenetv2_100", pad_type="same")
    whole.load_state_dict(net.state_dict(), strict=False)
    torch.save(whole.state_dict(), path := tmp_path / "weights.pth")
    shape, x = Shape(1.0, 2, 5, 0, (1.0,)), torch.rand(1, 3, 96, 64)
    found: Any = detector(RETINA, shape, 1, np.zeros(3, np.float32), np.ones(3, np.float32), path).eval()
    with torch.inference_mode():
        for ours, theirs in zip(found.backbone.body(x).values(), net(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@needs_torchvision
def test_other_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, path := tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="does not hold the weights"):
        timm_backbone(path)
    with pytest.raises(ModelError, match="cannot be read"):
        timm_backbone(tmp_path / "none.safetensors")


@needs_torchvision
def test_recalibrated_norms_answer_the_same_with_the_statistics_of_the_images() -> None:
    torch.manual_seed(0)
    plain = np.full(3, 0.5, np.float32)
    net: Any = detector(RETINA, Shape(1.0, 3, 3, 0, (1.0,)), 1, plain, plain)
    images = list(torch.rand(4, 3, net.transform.min_size[0], net.transform.min_size[0]))
    x = net.transform(images)[0].tensors
    with torch.inference_mode():
        before = net.eval().backbone.body(x)["0"]
    recalibrate(net, images)
    with torch.inference_mode():
        after, trained = net.eval().backbone.body(x)["0"], net.train().backbone.body(x)["0"]
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(trained, before, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@needs_torchvision
def test_the_benchmark_goes_on_from_what_it_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    split, fits = digit_split(320), []
    for scene in (*split.train, *split.test):
        cv2.imwrite(str(folder / f"{scene.name}.png"), np.asarray(scene.image))
        (folder / f"{scene.name}.geojson").write_text(json.dumps(scene.annotations))

    def fitted(images: Any, annotations: Any, **options: Any) -> Model:
        fits.append((len(images), len(annotations), options["seed"]))
        return load_model("digits")

    monkeypatch.setattr(run, "fit", fitted)
    scale, test = run.Scale(1, 10), ["digits-test"]
    report = run.benchmark_detectors(tmp_path, data=folder, test=test, scale=scale)
    assert fits == [(2, 2, 0)]
    figures = report.figures()
    # This model was trained on digits for long, the others for no time at all.
    assert figures[f"{run.OURS}/AP centres"] > 0.8
    assert figures[f"{RCNN}/AP centres"] < 0.2
    assert {f"{name}/kMAC" for name in (run.OURS, RCNN, RETINA)} <= set(figures)
    monkeypatch.setattr(run, "train", None)
    assert run.benchmark_detectors(tmp_path, data=folder, test=test, scale=scale).figures() == figures
    assert len(fits) == 1
    with pytest.raises(ValueError, match="at least one seed"):
        run.benchmark_detectors(tmp_path, data=folder, test=[], scale=scale)
