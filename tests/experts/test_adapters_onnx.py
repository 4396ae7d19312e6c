"""The adapter of ONNX files: torch with the same weights, torchvision and the files' own libraries are oracles."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torchvision.ops import batched_nms
from torchvision.transforms.functional import normalize

import coarse2fine as c2f
from coarse2fine.experts.adapters.decoding import decode_yolo
from coarse2fine.experts.answers import read_boxes, read_classes, read_map, read_vectors

SIDE = 32
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(2, 3, 3, 3)).astype(np.float32)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
Write = Callable[..., str]


def tiles(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def as_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)


def logits(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.conv2d(x, torch.from_numpy(KERNEL), padding=1)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a graph of some nodes to a file."""

    def write(
        nodes: Sequence[Any],
        outputs: Mapping[str, Sequence[Any]],
        *,
        shape: Sequence[Any] = ("n", 3, "h", "w"),
        dtype: int = TensorProto.FLOAT,
        metadata: Mapping[str, str] | None = None,
        constants: Mapping[str, NDArray[Any]] | None = None,
    ) -> str:
        graph = helper.make_graph(
            list(nodes),
            "net",
            [helper.make_tensor_value_info("x", dtype, list(shape))],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(s)) for name, s in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in {"k": KERNEL, **(constants or {})}.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        helper.set_model_props(model, dict(metadata or {}))
        path = tmp_path / "net.onnx"
        onnx.save(model, path)
        return f"onnx:{path}"

    return write


CONV = helper.make_node("Conv", ["x", "k"], ["y"], pads=[1, 1, 1, 1])
MAP = {"y": ("n", 2, "h", "w")}


@pytest.mark.parametrize("batch", ["n", 1, 2])
def test_maps_of_any_batch(write: Write, batch: Any) -> None:
    spec = write([CONV], {"y": (batch, 2, "h", "w")}, shape=(batch, 3, SIDE, SIDE))
    made = c2f.expert(spec, tile=28, context=2, mean=MEAN, std=STD, activation="sigmoid", labels=["a", "b"])
    assert made.kind == "map"
    assert made.batch == (batch if isinstance(batch, int) else 64)
    wanted = logits(normalize(as_tensor(tiles(3)), MEAN, STD)).sigmoid()
    np.testing.assert_allclose(read_map(made(tiles(3)), 3, 2, SIDE), wanted, atol=1e-5)
    with pytest.raises(c2f.ExpertError, match=r"32 x 32 px, but tiles have 64 px.*tile \+ 2 \* context = 32"):
        c2f.expert(spec, tile=64)


def test_softmax_leaves_out_the_background(write: Write) -> None:
    made = c2f.expert(write([CONV], MAP), tile=SIDE, activation="softmax")
    wanted = logits(as_tensor(tiles(2))).softmax(1)[:, 1:]
    np.testing.assert_allclose(read_map(made(tiles(2)), 2, 1, SIDE), wanted, atol=1e-5)


def test_options_in_the_metadata_and_those_of_the_user(write: Write) -> None:
    own = {"mean": MEAN, "std": STD, "activation": "sigmoid", "channels": "bgr", "labels": ["a", "b"]}
    spec = write([CONV], MAP, metadata={"coarse2fine": json.dumps(own)})
    told = c2f.expert(spec, tile=SIDE)
    assert [label.name for label in told.labels] == ["a", "b"]
    bgr = np.ascontiguousarray(tiles(2)[..., ::-1])
    np.testing.assert_allclose(told(tiles(2)), logits(normalize(as_tensor(bgr), MEAN, STD)).sigmoid(), atol=1e-5)
    given = c2f.expert(spec, tile=SIDE, channels="rgb", scale=1.0, mean=[0, 0, 0], std=[1, 1, 1], activation="none")
    np.testing.assert_allclose(given(tiles(2)), logits(as_tensor(tiles(2)) * 255), rtol=1e-4, atol=1e-2)
    with pytest.raises(c2f.ExpertError, match="metadata"):
        c2f.expert(write([CONV], MAP, metadata={"coarse2fine": "{"}), tile=SIDE)


def test_channels_last_and_bytes(write: Write) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "k"], ["y"], pads=[1, 1, 1, 1]),
    ]
    spec = write(nodes, MAP, shape=("n", SIDE, SIDE, 3), dtype=TensorProto.UINT8)
    wanted = logits(as_tensor(tiles(2)) * 255)
    np.testing.assert_allclose(c2f.expert(spec, tile=SIDE)(tiles(2)), wanted, rtol=1e-4, atol=1e-2)


def test_classes_and_vectors(write: Write) -> None:
    nodes = [CONV, helper.make_node("ReduceMean", ["y"], ["v"], axes=[2, 3], keepdims=0)]
    spec = write(nodes, {"v": ("n", 2)})
    wanted = logits(as_tensor(tiles(2))).mean((2, 3))
    classes = c2f.expert(spec, tile=SIDE, activation="sigmoid", labels=["a", "b"])
    assert classes.kind == "classes"
    np.testing.assert_allclose(read_classes(classes(tiles(2)), 2, 2), wanted.sigmoid(), atol=1e-5)
    vectors = c2f.expert(spec, tile=SIDE, kind="vectors", interest=lambda v: v[:, 0] * 0)
    np.testing.assert_allclose(read_vectors(vectors(tiles(2)), 2), wanted, atol=1e-5)


def predictions(count: int, classes: int, anchors: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(2)
    centre, size = rng.uniform(0, 64, (count, 2, anchors)), rng.uniform(4, 30, (count, 2, anchors))
    return np.concatenate([centre, size, rng.uniform(0, 1, (count, classes, anchors))], axis=1).astype(np.float32)


@pytest.mark.parametrize("iou", [0.3, 0.7])
def test_yolo_outputs_get_suppression_within_classes(iou: float) -> None:
    raw = predictions(2, 3, 200)
    found = decode_yolo(raw, 64, 0.6, iou, 300)
    for tile, mine in zip(torch.from_numpy(raw), found, strict=True):
        scores, labels = tile[4:].max(0)
        boxes = torch.cat([tile[:2] - tile[2:4] / 2, tile[:2] + tile[2:4] / 2]).T
        rows = scores > 0.6
        boxes, scores, labels = boxes[rows], scores[rows], labels[rows]
        kept = batched_nms(boxes, scores, labels, iou)
        np.testing.assert_allclose(mine[:, :4], boxes[kept].clamp(0, 64), atol=1e-4)
        np.testing.assert_array_equal(mine[:, 5], labels[kept])
        assert 5 < len(kept) < int(rows.sum())
    for same, mine in zip(decode_yolo(raw.transpose(0, 2, 1), 64, 0.6, iou, 300), found, strict=True):
        np.testing.assert_array_equal(same, mine)
    assert [len(each) for each in decode_yolo(raw, 64, 0.6, iou, 4)] == [4, 4]
    assert [len(each) for each in decode_yolo(raw, 64, 0.9999, iou, 4)] == [0, 0]


def constant(value: NDArray[np.float32], name: str) -> list[Any]:
    """Nodes that give a constant plus nothing of the input."""
    return [
        helper.make_node("Constant", [], [f"{name}_c"], value=numpy_helper.from_array(value)),
        helper.make_node("ReduceMin", ["x"], [f"{name}_m"], keepdims=0),
        helper.make_node("Mul", [f"{name}_m", "zero"], [f"{name}_z"]),
        helper.make_node("Add", [f"{name}_c", f"{name}_z"], [name]),
    ]


ZERO = {"zero": np.zeros((), np.float32)}


def test_detectors_by_decode(write: Write) -> None:
    rows = np.array([[[2, 3, 9, 9, 0.9, 1], [1, 1, 5, 5, 0.3, 0], [0, 0, 0, 0, 0, 0]]], np.float32)
    spec = write(constant(rows, "out"), {"out": (1, 3, 6)}, shape=(1, 3, SIDE, SIDE), constants=ZERO)
    with pytest.raises(c2f.ExpertError, match=r"out has 3 axes.*decode= one of yolo, rows, boxes"):
        c2f.expert(spec, tile=SIDE)
    made = c2f.expert(spec, tile=SIDE, decode="rows", labels=["a", "b"], confidence=0.5)
    assert (made.kind, made.confidence) == ("boxes", 0.5)
    for each in read_boxes(made(tiles(2)), 2, ["a", "b"], SIDE):
        assert each.xyxy.tolist() == [[2, 3, 9, 9]]
        assert each.labels.tolist() == [1]
    parts = {"boxes": rows[0, :2, :4], "scores": rows[0, :2, 4], "labels": rows[0, :2, 5]}
    nodes = [node for name, value in parts.items() for node in constant(np.ascontiguousarray(value), name)]
    shapes = {"boxes": (2, 4), "scores": (2,), "labels": (2,)}
    named = c2f.expert(write(nodes, shapes, shape=(1, 3, SIDE, SIDE), constants=ZERO), tile=SIDE, labels=["a", "b"])
    assert named.kind == "boxes"
    found = read_boxes(named(tiles(2)), 2, ["a", "b"], SIDE)
    assert [each.labels.tolist() for each in found] == [[1, 0], [1, 0]]


@pytest.mark.filterwarnings("default")
def test_an_exported_yolo_is_decoded_by_its_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLO_AUTOINSTALL", "False")
    ultralytics = pytest.importorskip("ultralytics")
    torch.manual_seed(0)
    model = ultralytics.YOLO("yolo11n.yaml")
    for part in model.model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    model.model.train()(torch.rand(4, 3, 160, 160))
    for part in model.model.model[-1].cv3:
        torch.nn.init.normal_(part[-1].weight, std=0.007)
        torch.nn.init.constant_(part[-1].bias, -2.5)
    model.model.eval()
    model.save(tmp_path / "net.pt")
    path = ultralytics.YOLO(tmp_path / "net.pt").export(format="onnx", imgsz=160, verbose=False)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), np.uint8)
    made = c2f.expert(f"onnx:{path}", tile=128, context=16, conf=0.2)
    assert (made.kind, made.batch, len(made.labels)) == ("boxes", 1, 80)
    found = read_boxes(made(pixels), 2, [label.name for label in made.labels], 160)
    for mine, tile in zip(found, pixels, strict=True):
        bgr = np.ascontiguousarray(tile[..., ::-1])
        theirs = ultralytics.YOLO(path, task="detect").predict(bgr, imgsz=160, conf=0.2, verbose=False)[0].boxes
        assert 3 < len(theirs) < 300
        a = np.column_stack([mine.labels, mine.scores, mine.xyxy])
        b = np.column_stack([theirs.cls, theirs.conf, theirs.xyxy])
        # Scores that are equal up to rounding come in any order.
        a, b = (each[np.lexsort(each[:, [2, 3, 0]].round(1).T)] for each in (a, b))
        np.testing.assert_allclose(a, b, atol=1e-2)


def test_the_text_detector_of_rapidocr_as_a_map() -> None:
    rapid = pytest.importorskip("rapidocr_onnxruntime")
    path = next((Path(rapid.__file__).parent / "models").glob("*_det_*.onnx"))
    page = np.full((192, 192, 3), 255, np.uint8)
    cv2.putText(page, "coarse to fine", (10, 80), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 2)
    made = c2f.expert(
        f"onnx:{path}", kind="map", tile=160, context=16, mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5], channels="bgr",
        labels=["text"],
    )  # fmt: skip
    found = read_map(made(np.stack([page, 255 - page])), 2, 1, 192)
    detector = rapid.RapidOCR(det_limit_side_len=192, det_limit_type="max").text_det
    for tile, mine in zip((page, 255 - page), found, strict=True):
        theirs = detector.infer(detector.get_preprocess(192)(np.ascontiguousarray(tile[..., ::-1])))[0]
        np.testing.assert_allclose(mine, theirs[0], atol=1e-4)
    assert found[0, 0, 60:85, 10:170].max() > 0.5 > found[0, 0, 120:].max()


def test_what_cannot_be_used(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write([CONV], MAP)
    for options, message in (
        ({"decode": "detr"}, "decode to be one of"),
        ({"gain": 2}, r"gain.*its options are decode, activation, layout"),
        ({"output": "z"}, "no output 'z', but y"),
        ({"decode": "boxes"}, "no output 'boxes', but y"),
        ({"layout": "nhwc"}, "does not take three channels as nhwc|takes images of"),
        ({"providers": ["Absent"]}, "no provider 'Absent'"),
        ({"decode": "yolo", "conf": 2.0}, "conf and iou between 0 and 1"),
    ):
        with pytest.raises(c2f.ExpertError, match=message):
            c2f.expert(spec, tile=SIDE, **options)
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    with pytest.raises(c2f.ExpertError, match="cannot be opened by onnxruntime"):
        c2f.expert(f"onnx:{tmp_path / 'no.onnx'}", tile=SIDE)
    with pytest.raises(c2f.ExpertError, match="cannot be read"):
        c2f.expert(f"onnx:{tmp_path / 'absent.onnx'}", tile=SIDE)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(c2f.ExpertError, match=r"needs onnxruntime.*pip install 'coarse2fine\[onnx\]'"):
        c2f.expert(spec, tile=SIDE)
