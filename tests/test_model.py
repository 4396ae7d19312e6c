"""Model files: what is saved comes back, and what is no model is refused with a reason."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as torch_file

from coarse2fine import ModelError, analyze, bundle, load_model
from coarse2fine.bundle import embedded_names
from coarse2fine.model import Geometry, Model
from tests.refining import net

MakeImage = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def saved(detector: Model, tmp_path: Path) -> Path:
    return detector.save(tmp_path / "tiny.c2f")


def parts(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and description, read without any library."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["coarse2fine"])


def rewrite(path: Path, text: str) -> None:
    save_file(load_file(path), path, metadata={"coarse2fine": text})


def test_a_saved_model_gives_identical_answers(saved: Path, detector: Model, make_image: MakeImage) -> None:
    again = load_model(saved)
    assert again.base.spec == detector.base.spec
    assert net(again).spec == net(detector).spec
    for name in ("name", "geometry", "mean", "std", "labels", "threshold", "tau", "window", "provenance"):
        assert getattr(again, name) == getattr(detector, name), name
    pixels = make_image(150, 130)
    for budget in (None, 0.4, 1.0):
        first, second = (analyze(pixels, m, budget=budget, precision="fp32") for m in (detector, saved))
        np.testing.assert_array_equal(first.interest, second.interest)
        assert first.regions == second.regions


def test_a_network_of_timm_is_saved_whole(
    timm_detector: Model, tmp_path: Path, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = timm_detector.save(tmp_path / "tiny.c2f")
    assert parts(path)[1]["base"] == "timm:mobilenetv2_035 stride=4 stages=4,8 offset=-3 margin=40 neck=64"
    monkeypatch.setattr("timm.models._builder.load_pretrained", None)  # nothing is fetched
    again = load_model(path)
    assert again.base.spec == timm_detector.base.spec
    assert str(again) == str(timm_detector)
    pixels = make_image(150, 130)
    first, second = (analyze(pixels, m, cells=100, precision="fp32") for m in (timm_detector, again))
    np.testing.assert_array_equal(first.interest, second.interest)
    assert first.regions == second.regions
    assert first.cost.scan_macs == second.cost.scan_macs > 0
    changes = ("timm:nonsense", "timm:mobilenetv2_035", "timm:resnet18 stride=4 stages=4,8 offset=-3 margin=40 neck=64")
    for text in changes:
        rewrite(path, json.dumps({**parts(path)[1], "base": text}))
        with pytest.raises(ModelError, match="does not describe a whole model"):
            load_model(path)


def test_an_explorer_keeps_one_encoder(explorer: Model, tmp_path: Path) -> None:
    again = load_model(explorer.save(tmp_path / "odd.c2f"))
    assert again.base is net(again)
    assert again.firing is None
    x = torch.randn(1, 3, 50, 50)
    with torch.inference_mode():
        torch.testing.assert_close(again.base(x), explorer.base(x), rtol=0, atol=0)


def test_the_file_is_plain_safetensors_with_json(saved: Path) -> None:
    header, description = parts(saved)
    assert description["format"] == bundle.FORMAT_VERSION
    assert description["labels"] == [{"name": "left", "kind": "object"}, {"name": "right", "kind": "object"}]
    assert {t["dtype"] for name, t in header.items() if name != "__metadata__"} <= {"F32", "I64"}
    content = saved.read_bytes()
    assert b"pickle" not in content
    assert not content.startswith((b"PK", b"\x80"))
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]  # no temporary file is left


def test_saving_replaces_and_is_reproducible(saved: Path, detector: Model) -> None:
    first = saved.read_bytes()
    replace(detector, threshold=0.7).save(saved)
    assert load_model(saved).threshold == 0.7
    detector.save(saved)
    assert saved.read_bytes() == first


def test_a_model_is_its_own_name(detector: Model) -> None:
    assert load_model(detector) is detector


@pytest.mark.parametrize("name", embedded_names())
def test_embedded_models_load(name: str) -> None:
    model = load_model(name)
    assert model.name == name
    assert model.labels


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model 'nonsense': it is neither a file nor one of the embedded"):
        load_model("nonsense")
    with pytest.raises(ModelError, match="is a directory"):
        load_model(tmp_path)
    garbage = tmp_path / "garbage.c2f"
    for content in (b"", b"garbage", bytes(1000), b"\x80\x04K\x01." * 100):
        garbage.write_bytes(content)
        with pytest.raises(ModelError, match=r"garbage\.c2f is no model file, or is damaged"):
            load_model(garbage)
    plain = tmp_path / "plain.safetensors"
    save_file({"x": np.zeros(3)}, plain)
    with pytest.raises(ModelError, match="without a coarse2fine description"):
        load_model(plain)
    torch_file({"x": torch.zeros(3, dtype=torch.bfloat16)}, plain)  # of no type that NumPy knows
    with pytest.raises(ModelError, match="without a coarse2fine description"):
        load_model(plain)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"tiny\.c2f"):
        load_model(saved)


def test_other_formats_and_broken_descriptions_are_refused(saved: Path) -> None:
    _, description = parts(saved)
    rewrite(saved, json.dumps({**description, "format": 99, "written_by": "coarse2fine 9.9"}))
    with pytest.raises(ModelError, match=r"model format 99, .*coarse2fine 9\.9"):
        load_model(saved)
    for text in ("{", "[1]", "null"):
        rewrite(saved, text)
        with pytest.raises(ModelError, match="damaged description"):
            load_model(saved)
    changes: list[dict[str, Any]] = [
        {"base": "4/2:4 1:1"},
        {"refiner": "nonsense"},
        {"geometry": {"cell": 7, "scan_downsample": 2, "refine_downsample": 1, "fine": 1}},
        {"geometry": {"cell": 8}},
        {"labels": [{"nme": "x"}]},
    ]
    for change in changes:
        rewrite(saved, json.dumps({**description, **change}))
        with pytest.raises(ModelError, match="does not describe a whole model"):
            load_model(saved)
    del description["window"]
    rewrite(saved, json.dumps(description))
    with pytest.raises(ModelError, match="does not describe a whole model"):
        load_model(saved)


def test_missing_weights_are_refused(saved: Path) -> None:
    arrays = load_file(saved)
    for key in ("base.convs.0.weight", "refiner.convs.1.bias", "firing.features"):
        text = json.dumps(parts(saved)[1])
        save_file({k: v for k, v in arrays.items() if k != key}, saved, metadata={"coarse2fine": text})
        with pytest.raises(ModelError, match="does not describe a whole model"):
            load_model(saved)


def test_saving_into_a_missing_folder_says_so(detector: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its folder does not exist"):
        detector.save(tmp_path / "no" / "such.c2f")


def test_planes_must_fit_together(detector: Model) -> None:
    with pytest.raises(ValueError, match="whole pixels in every plane"):
        Geometry(cell=10, scan_downsample=4, refine_downsample=1)
    with pytest.raises(ValueError, match="stride"):
        replace(detector, geometry=Geometry(cell=16, scan_downsample=2, refine_downsample=2))
