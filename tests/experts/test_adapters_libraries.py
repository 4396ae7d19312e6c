"""Adapters of SAHI and Ultralytics, and callables that return forms of supervision and transformers."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray

import coarse2fine as c2f
from coarse2fine.experts.answers import Boxes, read_boxes, read_classes

# The libraries' own warnings, about Python versions and deprecations, are not ours to heed.
pytestmark = pytest.mark.filterwarnings("default")
NAME = "fasterrcnn_mobilenet_v3_large_320_fpn"
SIDE = 160
CLASSES = ("a", "b")


def tiles(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def read(expert: c2f.Expert, pixels: NDArray[np.uint8]) -> list[Boxes]:
    return read_boxes(expert(pixels), len(pixels), [label.name for label in expert.labels], pixels.shape[1])


@pytest.fixture(scope="module")
def detector() -> Any:
    torch.manual_seed(0)
    return torchvision.models.get_model(NAME, weights=None, weights_backbone=None, num_classes=3).eval()


@pytest.fixture
def sahi_model(detector: Any) -> Any:
    models = pytest.importorskip("sahi.models.torchvision")
    return models.TorchVisionDetectionModel(
        model=detector, device="cpu", confidence_threshold=0.3, category_mapping={"0": "ground", "1": "a", "2": "b"}
    )


@pytest.mark.slow
def test_a_live_model_of_sahi(sahi_model: Any) -> None:
    predict = pytest.importorskip("sahi.predict")
    made, pixels = c2f.expert(sahi_model, tile=128, context=16), tiles(2)
    assert [label.name for label in made.labels] == ["ground", "a", "b"]
    assert (made.kind, made.confidence) == ("boxes", 0.3)
    found = read(made, pixels)
    assert sum(map(len, found)) > 5
    for mine, tile in zip(found, pixels, strict=True):
        theirs = predict.get_prediction(tile, sahi_model).object_prediction_list
        np.testing.assert_allclose(mine.xyxy, [p.bbox.to_xyxy() for p in theirs], atol=1e-3)
        np.testing.assert_allclose(mine.scores, [p.score.value for p in theirs], atol=1e-5)
        assert [made.labels[i].name for i in mine.labels] == [p.category.name for p in theirs]
    assert made.check().expert.tile_macs > 0


def test_a_model_of_sahi_by_its_type_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector: Any, sahi_model: Any
) -> None:
    constructors = sys.modules["sahi.models.torchvision"].MODEL_NAME_TO_CONSTRUCTOR
    # SAHI would download the weights of the backbone before it loads the file.
    local = partial(constructors[NAME], weights_backbone=None)
    monkeypatch.setitem(constructors, NAME, local)
    torch.save(detector.state_dict(), tmp_path / "w.pth")
    config = tmp_path / "config.yaml"
    config.write_text(f"model_name: {NAME}\nnum_classes: 3\n")
    given: dict[str, Any] = {
        "model_path": str(tmp_path / "w.pth"), "config_path": str(config), "device": "cpu",
        "category_mapping": {"0": "ground", "1": "a", "2": "b"},
    }  # fmt: skip
    made = c2f.expert("sahi:torchvision", tile=128, context=16, confidence=0.3, **given)
    assert made.options == given
    for mine, theirs in zip(
        read(made, tiles(1)), read(c2f.expert(sahi_model, tile=128, context=16), tiles(1)), strict=True
    ):
        np.testing.assert_allclose(mine.xyxy, theirs.xyxy, atol=1e-3)
    with pytest.raises(c2f.ExpertError, match="SAHI cannot make sahi:nothing"):
        c2f.expert("sahi:nothing", tile=128)


def test_masks_of_sahi_become_polygons() -> None:
    base = pytest.importorskip("sahi.models.base")
    prediction = pytest.importorskip("sahi.prediction")

    class Disc(base.DetectionModel):  # type: ignore[misc, name-defined]
        def load_model(self) -> None:
            self.model, self.category_mapping = object(), {"7": "disc"}

        def perform_inference(self, image: np.ndarray[Any, Any]) -> None:
            self._original_predictions = image

        def _create_object_prediction_list_from_original_predictions(self, *_: Any, **__: Any) -> None:
            polygon = [[30, 20, 60, 20, 60, 50, 30, 50]]
            one = prediction.ObjectPrediction(
                segmentation=polygon, category_id=7, category_name="disc", score=0.9, full_shape=[SIDE, SIDE]
            )
            self._object_prediction_list_per_image = [[one]]

    found = read(c2f.expert(Disc(device="cpu"), tile=128, context=16), tiles(2))
    for each in found:
        assert each.labels.tolist() == [0]
        assert each.xyxy.tolist() == [[30, 20, 60, 50]]
        assert each.outlines is not None
        np.testing.assert_allclose(each.outlines[0], [[30, 20], [60, 20], [60, 50], [30, 50]])


def yolo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str = "") -> Any:
    """A small random YOLO with finds: features are normalised, and scores spread."""
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_AUTOINSTALL", "False")
    ultralytics = pytest.importorskip("ultralytics")
    torch.manual_seed(0)
    model = ultralytics.YOLO(f"yolo11n{form}.yaml", verbose=False)
    for part in model.model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    model.model.train()(torch.rand(4, 3, SIDE, SIDE))
    for part in getattr(model.model.model[-1], "cv3", ()):
        torch.nn.init.normal_(part[-1].weight, std=0.007)
        torch.nn.init.constant_(part[-1].bias, -2.5)
    model.model.eval()
    return model


def test_ultralytics_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = yolo(tmp_path, monkeypatch), tiles(3)
    model.save(tmp_path / "best.pt")
    saved = type(model)(tmp_path / "best.pt")  # Ultralytics saves half precision
    wanted = saved.predict([np.ascontiguousarray(t[..., ::-1]) for t in pixels], imgsz=SIDE, conf=0.2, verbose=False)
    assert sum(len(each) for each in wanted) > 5
    made = c2f.expert(f"ultralytics:{tmp_path / 'best.pt'}", tile=128, context=16, conf=0.2)
    assert (made.kind, made.confidence, len(made.labels)) == ("boxes", 0.2, 80)
    for mine, theirs in zip(read(made, pixels), wanted, strict=True):
        np.testing.assert_allclose(mine.xyxy, theirs.boxes.xyxy, atol=1e-2)
        np.testing.assert_allclose(mine.scores, theirs.boxes.conf, atol=1e-4)
        np.testing.assert_array_equal(mine.labels, theirs.boxes.cls)
    lower = c2f.expert(f"ultralytics:{tmp_path / 'best.pt'}", tile=128, context=16, confidence=0.1)
    assert sum(map(len, read(lower, pixels))) > sum(map(len, wanted))
    assert made.sha256 == lower.sha256 != ""
    with pytest.raises(c2f.ExpertError, match=r"no file 'absent.pt'; nothing is downloaded"):
        c2f.expert("ultralytics:absent.pt")


@pytest.mark.parametrize("form", ["-seg", "-obb"])
def test_ultralytics_masks_and_oriented_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    model, pixels = yolo(tmp_path, monkeypatch, form), tiles(2)
    found = read(c2f.expert(model, tile=128, context=16, conf=0.2, max_det=20), pixels)
    wanted = model.predict(
        [np.ascontiguousarray(t[..., ::-1]) for t in pixels], imgsz=SIDE, conf=0.2, verbose=False, max_det=20
    )
    assert sum(map(len, found)) > 3
    for mine, theirs in zip(found, wanted, strict=True):
        polygons = theirs.masks.xy if form == "-seg" else theirs.obb.xyxyxyxy.numpy()
        assert mine.outlines is not None
        for a, b in zip(mine.outlines, polygons, strict=True):
            np.testing.assert_allclose(a, b.reshape(-1, 2), atol=1e-2)


def test_ultralytics_classifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = yolo(tmp_path, monkeypatch, "-cls"), tiles(2)
    made = c2f.expert(model, tile=SIDE)
    assert made.kind == "classes"
    wanted = [model.predict(np.ascontiguousarray(t[..., ::-1]), imgsz=SIDE, verbose=False)[0] for t in pixels]
    found = read_classes(made(pixels), 2, len(made.labels))
    np.testing.assert_allclose(found, [each.probs.data for each in wanted], atol=1e-4)


def test_callables_that_return_results_of_ultralytics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = yolo(tmp_path, monkeypatch), tiles(2)

    def call(given: NDArray[np.uint8]) -> Any:
        return model.predict(list(given), imgsz=SIDE, conf=0.2, verbose=False, stream=True)

    named = c2f.expert(call, tile=128, context=16, labels=[str(i) for i in range(80)])
    assert [len(each) for each in read(named, pixels)] == [len(each) for each in call(pixels)]
    one = c2f.expert(lambda given: next(iter(call(given))), tile=128, context=16, labels=[str(i) for i in range(80)])
    assert len(read(one, pixels[:1])[0]) == len(next(iter(call(pixels[:1]))))


@pytest.mark.parametrize("library", ["sahi", "ultralytics"])
def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(c2f.ExpertError, match=rf"needs {library}.*pip install 'coarse2fine\[{library}\]'"):
        c2f.expert(f"{library}:x.pt")


def test_supervision_detections() -> None:
    sv = pytest.importorskip("supervision")
    mask = np.zeros((2, SIDE, SIDE), bool)
    mask[0, 20:50, 30:60] = mask[1, 100:120, 100:140] = True
    boxes = np.array([[30, 20, 60, 50], [100, 100, 140, 120]], np.float32)
    found = sv.Detections(boxes, mask=mask, confidence=np.array([0.9, 0.8]), class_id=np.array([1, 0]))
    for answer, count in (([found, sv.Detections.empty()], 2), (found, 1)):
        first = read_boxes(answer, count, CLASSES, SIDE)[0]
        assert first.xyxy.tolist() == boxes.tolist()
        assert first.labels.tolist() == [1, 0]
        assert first.outlines is not None
        assert [each.min() for each in first.outlines] == [20.5, 100.5]
    corners = np.array([[[30, 40], [50, 20], [60, 30], [40, 50]]], np.float32)
    oriented = sv.Detections(boxes[:1], class_id=np.array([0]), data={"xyxyxyxy": corners})
    (read_one,) = read_boxes([oriented], 1, CLASSES, SIDE)
    assert read_one.outlines is not None
    np.testing.assert_array_equal(read_one.outlines[0], corners[0])


def test_transformers_object_detection() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.DetrConfig(num_labels=2, backbone_config=None, use_timm_backbone=False)
    outputs = transformers.models.detr.modeling_detr.DetrObjectDetectionOutput(
        logits=torch.tensor([[[4.0, 0, 0], [0, 0, 6.0], [0, 5.0, 0]]]),
        pred_boxes=torch.tensor([[[0.5, 0.5, 0.25, 0.5], [0.1, 0.1, 0.1, 0.1], [0.25, 0.25, 0.1, 0.1]]]),
    )
    assert config.num_labels == 2
    post = transformers.DetrImageProcessor().post_process_object_detection
    (found,) = read_boxes(post(outputs, 0.5, [(SIDE, SIDE)]), 1, CLASSES, SIDE)
    np.testing.assert_allclose(found.xyxy, [[60, 40, 100, 120], [32, 32, 48, 48]], atol=1e-3)
    assert found.labels.tolist() == [0, 1]


def test_transformers_instance_segmentation() -> None:
    plane = torch.full((SIDE, SIDE), -1)
    plane[10:30, 40:80] = 0
    plane[90:100, 5:25] = 1
    segments = [{"id": 0, "label_id": 1, "score": 0.9}, {"id": 1, "label_id": 0, "score": 0.7}]
    full = {"segmentation": plane, "segments_info": segments}
    empty: dict[str, Any] = {"segmentation": torch.full((SIDE, SIDE), -1), "segments_info": []}
    first, second = read_boxes([full, empty], 2, CLASSES, SIDE)
    assert first.xyxy.tolist() == [[40, 10, 80, 30], [5, 90, 25, 100]]
    assert first.labels.tolist() == [1, 0]
    assert first.outlines is not None
    assert len(second) == 0


def test_torchvision_masks_and_masks_of_a_lower_resolution() -> None:
    mask = torch.zeros(1, 1, SIDE // 2, SIDE // 2)
    mask[0, 0, 10:20, 30:60] = 0.8
    found = {"boxes": torch.tensor([[60.0, 20, 120, 40]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([1])}
    (one,) = read_boxes([{**found, "masks": mask}], 1, CLASSES, SIDE)
    assert one.outlines is not None
    assert one.outlines[0].min(axis=0).tolist() == [61, 21]
    assert one.outlines[0].max(axis=0).tolist() == [119, 39]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"boxes": np.zeros((4, 5)), "scores": np.zeros(5)}, r"boxes of shape \(4, 5\)"),
        ({"scores": [0.5]}, "dict without boxes"),
        (
            {"boxes": [[200, 10, 220, 30]]},
            r"box \[200.0, 10.0, 220.0, 30.0\], which lies outside of its tile of 160 px",
        ),
        ({"boxes": [[0, 0, 9, 9]], "labels": [np.nan]}, "class nan"),
        ({"boxes": [[0, 0, 9, 9]], "labels": [2]}, "class 2; it has 2 labels"),
        ({"boxes": [[0, 0, 9, 9]], "labels": np.array(["c"])}, "class 'c'; its labels are a, b"),
        ({"boxes": [[0, 0, 9, 9]], "masks": np.zeros((1, 8, 9))}, r"masks of shape \(1, 8, 9\)"),
        ({"boxes": [[0, 0, 9, 9]], "polygons": [[[0, np.nan], [1, 1], [2, 2]]]}, "polygons that are NaN"),
        ({"boxes": "none"}, "str for boxes"),
    ],
)
def test_answers_that_cannot_be_read(answer: Any, message: str) -> None:
    with pytest.raises(c2f.ExpertError, match=message):
        read_boxes([answer], 1, CLASSES, SIDE)
