"""The examples of docs/experts.md run as they stand if the library is installed; files they name are made first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import coarse2fine as c2f
from coarse2fine.experts.answers import read_boxes, read_vectors

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "experts.md").read_text("utf-8")
NEEDED = {"SAHI": "sahi", "Ultralytics": "ultralytics", "ONNX": "onnxruntime"}
MAKE_YOLO = "from ultralytics import YOLO; YOLO('yolo11n.yaml').save('best.pt')"


def examples(chapter: str) -> dict[str, str]:
    """Code by section of a chapter."""
    text = next(part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE) if part.startswith(chapter))
    sections = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    found = {s.partition("\n")[0]: re.findall(r"^```python\n(.*?)^```$", s, re.DOTALL | re.MULTILINE) for s in sections}
    return {name: "\n".join(blocks) for name, blocks in found.items()}


ADAPTERS, RECIPES = examples("Adapters"), examples("Recipes")


def run(code: str, folder: Path) -> None:
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "YOLO_CONFIG_DIR": str(folder), "YOLO_AUTOINSTALL": "False"}
    environment = {**os.environ, **own}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr


def write_net(path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    h = onnx.helper
    graph = h.make_graph(
        [h.make_node("Conv", ["x", "k"], ["y"], pads=[1, 1, 1, 1])],
        "net",
        [h.make_tensor_value_info("x", 1, ["n", 3, "h", "w"])],
        [h.make_tensor_value_info("y", 1, ["n", 1, "h", "w"])],
        [onnx.numpy_helper.from_array(np.zeros((1, 3, 3, 3), np.float32), "k")],
    )
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 13)], ir_version=8), path)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ADAPTERS)
def test_examples_of_adapters_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    assert ADAPTERS[name]
    if name == "Ultralytics":  # it reads its settings when it is imported
        run(f"{MAKE_YOLO}\n{ADAPTERS[name]}", tmp_path)
        return
    if name == "ONNX":
        write_net(tmp_path / "unet.onnx")
    monkeypatch.chdir(tmp_path)
    exec(ADAPTERS[name], {"__name__": "__main__"})


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_python(name: str) -> None:
    compile(RECIPES[name], name, "exec")


@pytest.mark.filterwarnings("default")
def test_the_recipe_for_cellpose_gives_the_masks_of_cellpose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("cellpose.models")
    resnet = pytest.importorskip("cellpose.resnet_torch")  # Cellpose 4 has one net only, of 1.2 GB
    torch.manual_seed(0)
    net = resnet.CPnet([2, 32, 64, 128, 256], 3, sz=3)
    net.save_model(tmp_path / "cells.model")
    space: dict[str, Any] = {}
    exec(RECIPES["Cellpose"], space)
    made = c2f.expert(space["cellpose"](str(tmp_path / "cells.model")), tile=96, context=16, labels=["cell"])
    tiles = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    model = models.CellposeModel(pretrained_model=str(tmp_path / "cells.model"))
    masks = model.eval(list(tiles), diameter=30, normalize={"lowhigh": [0, 255]})[0]
    found = read_boxes(made(tiles), 2, ["cell"], 128)
    counts = [int(plane.max()) for plane in masks]
    assert [len(each) for each in found] == counts
    # A random net hardly finds a cell: the reading of masks is tried on two squares.
    plane = np.zeros((128, 128), np.uint16)
    plane[10:30, 20:50], plane[60:90, 70:80] = 1, 2
    monkeypatch.setattr(models.CellposeModel, "eval", lambda *_, **__: ([plane, plane * 0], None, None))
    first, second = read_boxes(made(tiles), 2, ["cell"], 128)
    assert first.xyxy.tolist() == [[20, 10, 50, 30], [70, 60, 80, 90]]
    assert len(second) == 0


@pytest.mark.filterwarnings("default")
def test_the_recipe_for_lazyslide_gives_the_vectors_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    base = pytest.importorskip("lazyslide_models.base")
    torch.manual_seed(0)
    model = base.TimmModel("resnet10t", pretrained=False)
    monkeypatch.setattr("lazyslide_models.MODEL_REGISTRY", {"net": lambda: model})
    space: dict[str, Any] = {}
    exec(RECIPES["LazySlide"], space)
    encode = space["lazyslide"]("net")
    made = c2f.expert(encode, kind="vectors", tile=96, interest=lambda vectors: vectors[:, 0])
    tiles = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    found = read_vectors(made(tiles), 2)
    for tile, vector in zip(tiles, found, strict=True):
        np.testing.assert_allclose(vector, model.encode_image(model.get_transform()(tile)[None])[0], atol=1e-4)
