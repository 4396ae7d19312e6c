"""Adapters of nets of torch, torchvision and timm: the libraries themselves, called on the same tiles, are oracles."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

import coarse2fine as c2f
from coarse2fine.experts.answers import read_boxes, read_classes, read_map, read_vectors

DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def tiles(count: int, side: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.stack([torch.from_numpy(tile.astype(np.float32) / 255).permute(2, 0, 1) for tile in pixels])


def detector(name: str = DETECTOR, classes: int = 3) -> Any:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes).eval()


class Half(nn.Module):
    """Logits of two classes at half of the resolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 2, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(x)
        return found


def make_half(gain: float = 1.0) -> nn.Module:
    net = Half()
    with torch.no_grad():
        net.conv.weight *= gain
    return net


def make_with_mean(mean: float) -> nn.Module:
    return make_half(mean)


@pytest.mark.parametrize("live", [True, False], ids=["live", "file"])
def test_torchvision_detectors_get_tiles_unresized_and_lose_their_background(tmp_path: Path, live: bool) -> None:
    net = detector()
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    pixels = tiles(2, 320)
    with torch.inference_mode():
        wanted = net(list(as_tensor(pixels)))  # its own size is 320: it does not resize either
    if live:
        made = c2f.expert(net, tile=256, context=32)
    else:
        made = c2f.expert(
            f"torchvision:{DETECTOR}", weights=str(tmp_path / "weights.pth"), num_classes=3, tile=256, context=32
        )
        assert made.sha256 == hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    assert made.kind == "boxes"
    assert len(made.labels) == 2
    found = read_boxes(made(pixels), 2, [label.name for label in made.labels], 320)
    assert sum(map(len, found)) > 10
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine.xyxy, theirs["boxes"], atol=1e-3)
        np.testing.assert_allclose(mine.scores, theirs["scores"], atol=1e-5)
        np.testing.assert_array_equal(mine.labels, theirs["labels"] - 1)


def test_torchvision_detectors_do_not_enlarge_small_tiles() -> None:
    made = c2f.expert(detector(), tile=128, context=0)
    shapes = []
    made.module.backbone.register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0].shape[2:])))
    made(tiles(1, 128))
    assert shapes == [(128, 128)]


def test_torchvision_detectors_without_a_background_keep_their_numbers() -> None:
    net = detector("fcos_resnet50_fpn", classes=2)
    net.score_thresh = 0.0
    made = c2f.expert(net, tile=64)
    assert len(made.labels) == 2
    found = made(tiles(1, 64))[0]
    net.transform.min_size, net.transform.max_size = (64,), 64
    with torch.inference_mode():
        wanted = net([as_tensor(tiles(1, 64))[0]])[0]
    assert len(wanted["labels"])
    np.testing.assert_array_equal(found["labels"], wanted["labels"])
    np.testing.assert_array_equal(found["boxes"], wanted["boxes"])


def test_torchvision_segmentation_is_a_map_without_background() -> None:
    torch.manual_seed(0)
    net = torchvision.models.get_model(
        "lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=4
    ).eval()
    made = c2f.expert(net, tile=96, context=16)
    assert (made.kind, len(made.labels)) == ("map", 3)
    pixels = tiles(2, 128)
    with torch.inference_mode():
        wanted = net(normalize(as_tensor(pixels), *IMAGENET))["out"].softmax(1)[:, 1:]
    np.testing.assert_allclose(read_map(made(pixels), 2, 3, 128), wanted, atol=1e-5)


def test_torchvision_weights_must_be_named_and_fit(tmp_path: Path) -> None:
    spec = f"torchvision:{DETECTOR}"
    with pytest.raises(c2f.ExpertError, match="weights=: a file"):
        c2f.expert(spec)
    with pytest.raises(c2f.ExpertError, match="no detection or segmentation model 'resnet18'"):
        c2f.expert("torchvision:resnet18", weights="none")
    with pytest.raises(c2f.ExpertError, match=r"no file 'absent.pth'.*'none'.*COCO_V1"):
        c2f.expert(spec, weights="absent.pth")
    with pytest.raises(c2f.ExpertError, match=r"gain.*options are weights, num_classes"):
        c2f.expert(spec, weights="none", gain=1)
    torch.save(detector().state_dict(), tmp_path / "three.pth")
    with pytest.raises(c2f.ExpertError, match="num_classes"):
        c2f.expert(spec, weights=str(tmp_path / "three.pth"), num_classes=5)
    torch.save(make_half(), tmp_path / "pickle.pth")
    with pytest.raises(c2f.ExpertError, match="cannot be read as tensors"):
        c2f.expert(spec, weights=str(tmp_path / "pickle.pth"), num_classes=3)


def test_pretrained_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any, **named: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models, "get_model", fails)
    monkeypatch.setattr(timm, "create_model", fails)
    for spec in (f"torchvision:{DETECTOR}", "timm:resnet18"):
        with pytest.raises(c2f.ExpertError, match=r"could not be downloaded.*no network.*weights= a file"):
            c2f.expert(spec, weights="pretrained")


def test_timm_classifiers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=3).eval()
    torch.save({"epoch": 3, "state_dict": net.state_dict()}, tmp_path / "w.pt")
    made = c2f.expert("timm:resnet10t", weights=str(tmp_path / "w.pt"), num_classes=3, background=1, tile=64)
    assert made.kind == "classes"
    assert [label.name for label in made.labels] == ["class 0", "class 2"]
    config = timm.data.resolve_model_data_config(net)
    pixels = tiles(3, 64)
    with torch.inference_mode():
        wanted = net(normalize(as_tensor(pixels), config["mean"], config["std"])).softmax(1)[:, [0, 2]]
    np.testing.assert_allclose(read_classes(made(pixels), 3, 2), wanted, atol=1e-5)
    assert c2f.expert(net, tile=64, labels=["a", "b", "c"]).kind == "classes"
    with pytest.raises(c2f.ExpertError, match="gives classes or vectors, not map"):
        c2f.expert(net, tile=64, kind="map")
    with pytest.raises(c2f.ExpertError, match="background from 0 to 2"):
        c2f.expert(net, tile=64, background=3)


def test_timm_classifier_of_one_class_gets_the_sigmoid() -> None:
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=1).eval()
    made = c2f.expert(net, tile=64, mean=(0, 0, 0), std=(1, 1, 1))
    with torch.inference_mode():
        wanted = net(as_tensor(tiles(2, 64))).sigmoid()
    np.testing.assert_allclose(read_classes(made(tiles(2, 64)), 2, 1), wanted, atol=1e-5)


def test_timm_encoders_give_what_goes_into_the_classifier() -> None:
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64).eval()
    made = c2f.expert(net, tile=64, interest=lambda vectors: np.full(len(vectors), 0.5))
    assert made.kind == "vectors"
    config = timm.data.resolve_model_data_config(net)
    pixels = tiles(2, 64)
    with torch.inference_mode():
        wanted = net(normalize(as_tensor(pixels), config["mean"], config["std"]))
    np.testing.assert_allclose(read_vectors(made(pixels), 2), wanted, atol=1e-4)


def test_timm_nets_of_one_size_get_resized_tiles() -> None:
    net = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=64).eval()
    made = c2f.expert(net, tile=128)
    assert read_classes(made(np.full((2, 128, 128, 3), 90, np.uint8)), 2, 2).shape == (2, 2)
    grey = made(np.full((1, 64, 64, 3), 90, np.uint8))
    np.testing.assert_allclose(made(np.full((1, 128, 128, 3), 90, np.uint8)), grey, atol=1e-4)


def test_live_nets_take_normalisation_and_activation() -> None:
    net = make_half().eval()
    pixels = tiles(3, 32)
    with torch.inference_mode():
        logits = net(normalize(as_tensor(pixels), *IMAGENET))
    even = c2f.expert(net, tile=32, labels=["a", "b"], mean=IMAGENET[0], std=IMAGENET[1])
    np.testing.assert_allclose(even(pixels), logits.sigmoid(), atol=1e-5)
    soft = c2f.expert(net, tile=32, mean=IMAGENET[0], std=IMAGENET[1], activation="softmax")
    np.testing.assert_allclose(soft(pixels), logits.softmax(1)[:, 1:], atol=1e-5)
    with pytest.raises(c2f.ExpertError, match='"sigmoid", "softmax" or "none"'):
        c2f.expert(net, tile=32, activation="relu")
    with pytest.raises(c2f.ExpertError, match="three numbers each"):
        c2f.expert(net, tile=32, mean=(0.5,))
    with pytest.raises(c2f.ExpertError, match=r"gain.*its options are mean, std, activation, device"):
        c2f.expert(net, tile=32, gain=2)


def test_options_of_a_named_function_and_of_its_net(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_nets", sys.modules[__name__])
    pixels = tiles(1, 32)
    with torch.inference_mode():
        wanted = make_half(3.0).eval()(normalize(as_tensor(pixels), *IMAGENET)).softmax(1)[:, 1:]
    net: dict[str, Any] = {"mean": list(IMAGENET[0]), "std": list(IMAGENET[1]), "activation": "softmax"}
    divided = c2f.expert("my_nets:make_half", tile=32, gain=3.0, **net)
    explicit = c2f.expert("my_nets:make_half", tile=32, kwargs={"gain": 3.0}, **net)
    for made in (divided, explicit):
        np.testing.assert_allclose(made(pixels), wanted, atol=1e-5)
    # An option that the function names is the function's.
    own = c2f.expert("my_nets:make_with_mean", tile=32, mean=3.0, activation="softmax")
    with torch.inference_mode():
        np.testing.assert_allclose(own(pixels), make_half(3.0)(as_tensor(pixels)).softmax(1)[:, 1:], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", ["dynamic", "fixed", "script"])
def test_programs(tmp_path: Path, kind: str) -> None:
    net, pixels, path = make_half().eval(), tiles(5, 32), tmp_path / "net.pt2"
    example = torch.zeros(2, 3, 32, 32)
    if kind == "script":
        torch.jit.save(torch.jit.trace(net, example), path)  # type: ignore[no-untyped-call]
    else:
        shapes = {"x": {0: torch.export.Dim("n")}} if kind == "dynamic" else None
        torch.export.save(torch.export.export(net, (example,), dynamic_shapes=shapes), path)
    made = c2f.expert(f"pt2:{path}", tile=28, context=2, labels=["a", "b"])
    assert made.batch == (2 if kind == "fixed" else 64)
    with torch.inference_mode():
        np.testing.assert_allclose(made(pixels), net(as_tensor(pixels)).sigmoid(), atol=1e-5)
    if kind != "script":
        with pytest.raises(c2f.ExpertError, match=r"32 x 32 px.*choose tile \+ 2 \* context = 32"):
            c2f.expert(f"pt2:{path}", tile=32, context=2)


def test_files_that_are_no_programs(tmp_path: Path) -> None:
    (tmp_path / "no.pt2").write_bytes(b"nothing")
    torch.save(make_half().state_dict(), tmp_path / "state.pt2")
    for name in ("no.pt2", "state.pt2"):
        with pytest.raises(c2f.ExpertError, match=r"no program of torch.export.save"):
            c2f.expert(f"pt2:{tmp_path / name}", tile=32)
    with pytest.raises(c2f.ExpertError, match="cannot be read"):
        c2f.expert(f"pt2:{tmp_path / 'absent.pt2'}", tile=32)


def test_segmentation_models_pytorch() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    given = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 2}
    torch.manual_seed(0)
    made = c2f.expert(
        "segmentation_models_pytorch:Unet", kwargs=given, mean=IMAGENET[0], std=IMAGENET[1], tile=48, context=8,
        labels=["a", "b"],
    )  # fmt: skip
    torch.manual_seed(0)
    net, pixels = smp.Unet(**given).eval(), tiles(2, 64)
    with torch.inference_mode():
        wanted = net(normalize(as_tensor(pixels), *IMAGENET)).sigmoid()
    np.testing.assert_allclose(read_map(made(pixels), 2, 2, 64), wanted, atol=1e-5)


def test_monai() -> None:
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    net = nets.UNet(spatial_dims=2, in_channels=3, out_channels=3, channels=(4, 8), strides=(2,)).eval()
    made, pixels = c2f.expert(net, activation="softmax", tile=48, context=8, labels=["a", "b"]), tiles(2, 64)
    with torch.inference_mode():
        wanted = net(as_tensor(pixels)).softmax(1)[:, 1:]
    np.testing.assert_allclose(read_map(made(pixels), 2, 2, 64), wanted, atol=1e-5)
