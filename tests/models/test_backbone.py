"""Networks of timm as bases, against timm itself and against what torch counts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from coarse2fine.fitting.optimise import train
from coarse2fine.fitting.timm_weights import make_backbone
from coarse2fine.models.backbone import MOST_MARGIN, Backbone, BackboneSpec, design
from coarse2fine.models.errors import ModelError
from coarse2fine.models.runtime import Runtime
from coarse2fine.models.timm_text import parse_network

SMALL = "mobilenetv3_small_050"
WEIGHTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "weights"
MakeImage = Callable[..., NDArray[np.uint8]]


@functools.cache
def _designed(channels: int, name: str, arguments: tuple[tuple[str, str], ...], stride: int) -> BackboneSpec:
    return design(channels, name, dict(arguments), stride)


@pytest.fixture(autouse=True)
def _designed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Designing a base takes half a second, and gives the same one each time."""

    def designed(channels: int, name: str, arguments: dict[str, str], stride: int) -> BackboneSpec:
        return _designed(channels, name, tuple(arguments.items()), stride)

    monkeypatch.setattr("coarse2fine.fitting.timm_weights.design", designed)


def seeded(spec: BackboneSpec, seed: int = 0) -> Backbone:
    """A random net whose batch norms have seen something."""
    torch.manual_seed(seed)
    net = Backbone(spec).train()
    with torch.inference_mode():
        for _ in range(8):
            net(torch.randn(2, spec.in_channels, *(spec.input_size(2 * spec.align),) * 2))
    return net.eval()


def made(text: str, weights: Any = "none", channels: int = 3, mean: float = 0.5, std: float = 0.25) -> Backbone:
    normal = (np.full(channels, value, np.float32) for value in (mean, std))
    return make_backbone(text, weights, channels=channels, stride=4, mean=next(normal), std=next(normal))


def weights_of(name: str, path: Path, **arguments: Any) -> Path:
    """The whole network's weights, its classifier among them."""
    torch.manual_seed(1)
    save_file(timm.create_model(name, **arguments).state_dict(), path)
    return path


names = st.sampled_from(["resnet18", "mobilenetv2_100.ra_in1k"])
arguments = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["same", "0.5", "True"])), max_size=2)
sizes = st.sampled_from([1, 2, 4])


@given(names, arguments, sizes, st.integers(1, 3), st.integers(-9, 9), st.integers(0, 9), st.integers(1, 254))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_text_round_trip(
    name: str, given_: list[tuple[str, str]], stride: int, depth: int, offset: int, halo: int, neck: int
) -> None:
    reductions = tuple(stride * 2**i for i in range(depth))
    spec = BackboneSpec(3, name, tuple(dict(given_).items()), stride, reductions, offset, halo * reductions[-1], neck)
    assert BackboneSpec.parse(3, str(spec)) == spec


@pytest.mark.parametrize(
    "text", ["timm:", "timm:?a=1", "resnet18", "timm:resnet18?pad", "timm:resnet18?=1", "timm:a b", ""]
)
def test_a_text_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="expected a base such as 'timm:mobilenetv2_100'"):
        parse_network(text)


@pytest.mark.parametrize(("name", "stride"), [("mobilenetv2_035", 4), ("regnetx_002", 4), ("resnet18", 2)])
def test_features_are_those_of_timm(name: str, stride: int) -> None:
    net = seeded(design(3, name, {}, stride))
    spec = net.spec
    assert 0 < spec.margin < MOST_MARGIN  # a field that the halo covers
    assert spec.margin % spec.reductions[-1] == 0
    reductions = timm.create_model(name, features_only=True).feature_info.reduction()
    stages = [n for n, r in enumerate(reductions) if r in spec.reductions]
    plain = timm.create_model(name, features_only=True, out_indices=stages)
    plain.load_state_dict(net.network.state_dict(), strict=False)
    cells, corner, far = 4 * spec.align, 2 * spec.reductions[-1], 16
    height, width = (spec.input_size(cells) + n * corner for n in (2, 3))
    picture = torch.randn(1, 3, height + 2 * far, width + 2 * far)
    moved = far - spec.offset
    start = far + corner
    end = start + spec.input_size(cells)
    with torch.inference_mode():
        expected = plain.eval()(picture[..., moved : moved + height, moved : moved + width])
        found = net.features(picture[..., start:end, start:end])
    for ours, theirs, reduction in zip(found[:-1], expected, spec.reductions, strict=True):
        first = (corner + spec.margin) // reduction
        side = cells * spec.stride // reduction
        assert ours.shape[2:] == (side, side)
        torch.testing.assert_close(ours, theirs[..., first : first + side, first : first + side], rtol=1e-4, atol=1e-5)
    assert found[-1].shape == (1, spec.neck, cells, cells)
    assert float(found[-1].min()) == 0


@pytest.mark.parametrize(
    ("text", "offsets"),
    [
        ("timm:mobilenetv2_035", (-3.5, -1.5)),
        ("timm:mobilenetv2_035?pad_type=same", (1.5, 3.5)),
        ("timm:regnetx_002", (-3.5, -1.5)),
        ("timm:resnet18", (-3.5, -1.5)),
        ("timm:convnext_atto", (0, 0)),
    ],
)
def test_cells_are_looked_at_in_their_middle(text: str, offsets: tuple[float, float]) -> None:
    """By the gradient; `offsets` are those of the stages at 1/4 and 1/8, by their paddings on paper."""
    spec = made(text).spec
    assert offsets[0] <= spec.offset <= offsets[1]
    nets = [seeded(spec, seed) for seed in range(3)]
    assert abs(off_centre(nets)) < 1
    for net in nets:
        net.spec = replace(spec, offset=0)
    assert offsets[0] - 0.5 < off_centre(nets) < offsets[1] + 0.5


def off_centre(nets: list[Backbone]) -> float:
    """Where the squared gradient of cells has its middle, from theirs, along both axes and over some random nets."""
    spec = nets[0].spec
    cells = slice(2 * spec.align, 3 * spec.align)
    side = spec.input_size(5 * spec.align)
    place = torch.arange(side) + 0.5 - side / 2
    total = torch.zeros(side)
    for net in nets:
        x = torch.randn(2, spec.in_channels, side, side, requires_grad=True)
        (gradient,) = torch.autograd.grad(net.features(x)[-1][..., cells, cells].square().sum(), x)
        weight = gradient.square().sum(dim=(0, 1))
        total += (weight.sum(dim=0) + weight.sum(dim=1)) / weight.sum()
    return float(total @ place / total.sum())


@pytest.mark.parametrize(
    ("text", "tolerance"),
    [
        ("timm:mobilenetv2_035", 1e-4),
        ("timm:mobilenetv2_035?pad_type=same", 1e-4),
        ("timm:resnet18", 1e-4),
        (f"timm:{SMALL}", 0.1),
    ],
)
def test_windows_equal_the_whole(text: str, tolerance: float) -> None:
    """Up to rounding; where squeeze and excitation looks at the whole block, only nearly (a share of the spread)."""
    net = seeded(made(text, channels=1).spec)
    spec, cells = net.spec, 8
    x = torch.randn(1, 1, spec.input_size(3 * cells), spec.input_size(2 * cells))
    step = cells * spec.stride
    with torch.inference_mode():
        whole = net(x)
        for y, x0 in np.ndindex(3, 2):
            window = x[
                ..., y * step : y * step + spec.input_size(cells), x0 * step : x0 * step + spec.input_size(cells)
            ]
            expected = whole[..., y * cells : (y + 1) * cells, x0 * cells : (x0 + 1) * cells]
            assert float((net(window) - expected).abs().max()) <= tolerance * float(whole.std())


@pytest.mark.parametrize(("name", "stride"), [("mobilenetv2_035", 4), ("resnet18", 2), (SMALL, 1)])
def test_multiply_adds_are_those_of_torch(name: str, stride: int) -> None:
    counted = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal counted
        if isinstance(layer, nn.Conv2d):
            counted += out.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            counted += out.numel() * layer.in_features

    net = seeded(design(3, name, {}, stride))
    spec = net.spec
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    height, width = 2 * spec.align, 3 * spec.align
    with torch.inference_mode():
        out = net(torch.zeros(1, 3, spec.input_size(height), spec.input_size(width)))
    assert out.shape == (1, 1, height, width)
    assert counted == spec.macs(height, width) == spec.macs(height, width - spec.align + 1)
    # What is done once a block hardly weighs in a large one.
    assert spec.macs_per_cell == pytest.approx(spec.macs(800, 800) / (spec.input_size(800) / stride) ** 2, rel=0.03)


def test_multiply_adds_of_the_whole_network_are_the_published_ones() -> None:
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381): 300 million at 224 x 224."""
    spec = BackboneSpec(3, "mobilenetv2_100", (), 32, (32,), 0, 0)
    neck = 7 * 7 * (320 * spec.neck + spec.neck)
    rest = 7 * 7 * 320 * 1280 + 1280 * 1000
    assert spec.macs(7, 7) - neck + rest == pytest.approx(300e6, rel=0.01)


def test_counting_and_designing_leave_the_callers_luck_alone() -> None:
    luck = torch.get_rng_state()
    assert design(1, "mobilenetv2_050", {}, 4).macs(9, 9) > 0
    assert torch.equal(torch.get_rng_state(), luck)


@pytest.mark.parametrize("channels", [1, 3])
def test_weights_come_with_their_preprocessing(channels: int, tmp_path: Path, make_image: MakeImage) -> None:
    path = weights_of("mobilenetv2_035", tmp_path / "weights.safetensors", pad_type="same")
    net = made("timm:mobilenetv2_035?pad_type=same&mean=0.5&std=0.5", path, channels, mean=0.4, std=0.2).eval()
    spec = net.spec
    side, moved = spec.input_size(8), 8 - spec.offset
    picture = torch.from_numpy(make_image(side + 16, side + 16, channels))
    pixels = picture.reshape(side + 16, side + 16, channels).permute(2, 0, 1)[None]
    whole = timm.create_model("mobilenetv2_035", pad_type="same")
    whole.load_state_dict(load_file(path))
    with torch.inference_mode():
        ours = net.features((pixels[..., 8:-8, 8:-8] / 255 - 0.4) / 0.2)
        x = (pixels / 127.5 - 1).expand(1, 3, -1, -1)[..., moved : moved + side, moved : moved + side]
        theirs = whole.eval().forward_intermediates(x, indices=[1, 2], intermediates_only=True)
    for mine, plane, reduction in zip(ours[:-1], theirs, (4, 8), strict=True):
        halo = spec.margin // reduction
        torch.testing.assert_close(mine, plane[..., halo:-halo, halo:-halo], rtol=1e-3, atol=1e-4)


def test_timm_says_what_its_weights_expect(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": timm.create_model("regnetx_002").state_dict()}, path)
    net = made("timm:regnetx_002", path, mean=0.5, std=0.25)
    seen = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = torch.rand(3, 1, 1)
    torch.testing.assert_close(
        (x - 0.5) / 0.25 * net.scale + net.shift, (x - seen[0][:, None, None]) / seen[1][:, None, None]
    )
    grey = made("timm:regnetx_002", path, channels=1, mean=0.5, std=0.25)
    torch.testing.assert_close(grey.scale.flatten(), torch.tensor([0.25 / seen[1].mean()]))
    assert torch.equal(made("timm:regnetx_002").scale, torch.ones(3, 1, 1))


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the shared weights are not here")
def test_shared_weights_load() -> None:
    path = WEIGHTS / "mobilenetv2_100_tf2ptq.safetensors"
    net = made("timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5", path, channels=1)
    state = load_file(path)
    key = "blocks.2.2.conv_pwl.weight"
    torch.testing.assert_close(net.network.state_dict()[key], state[key].float())
    torch.testing.assert_close(
        net.network.state_dict()["conv_stem.weight"], state["conv_stem.weight"].float().sum(dim=1, keepdim=True)
    )
    with pytest.raises(ModelError, match=r"tf2ptq\.safetensors: .*do not belong to resnet18"):
        made("timm:resnet18", path)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = weights_of(SMALL, tmp_path / "whole.safetensors")
    state = load_file(path)
    text = f"timm:{SMALL}"
    save_file({k: v for k, v in state.items() if not k.startswith(("classifier", "blocks.5"))}, path)
    made(text, path)  # neither the classifier nor stages that are not in use are missed
    save_file({**state, "classifier.weight": torch.zeros(7, 1024)}, path)
    made(text, path)
    save_file({k: v for k, v in state.items() if k != "conv_stem.weight"}, path)
    with pytest.raises(ModelError, match=r"whole\.safetensors: .*1 missing \(conv_stem\.weight\), 0 unknown"):
        made(text, path)
    save_file({**state, "other.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"0 missing, 1 unknown \(other\.weight\)"):
        made(text, path)
    save_file({**state, "conv_stem.weight": torch.zeros(8, 3, 3, 3)}, path)
    with pytest.raises(ModelError, match=r"(?s)other shapes than those of mobilenetv3_small_050: .*conv_stem"):
        made(text, path)


def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no weights at .*none\.pth: expected a \.safetensors or \.pth file"):
        made(f"timm:{SMALL}", tmp_path / "none.pth")
    path = tmp_path / "bad.pth"
    for content in (b"", b"nothing", b"\x80\x02K\x01."):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"bad\.pth: cannot be read as plain weights"):
            made(f"timm:{SMALL}", path)
    torch.save(timm.create_model(SMALL), path)  # executable: not even opened
    with pytest.raises(ModelError, match=r"bad\.pth: cannot be read as plain weights") as refused:
        made(f"timm:{SMALL}", path)
    assert "weights_only=False" not in str(refused.value)  # torch's advice would execute it
    torch.save({"epoch": 3}, path)
    with pytest.raises(ModelError, match=r"bad\.pth: expected a mapping of names to tensors"):
        made(f"timm:{SMALL}", path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm:mobilnetv2_100", r"knows no network 'mobilnetv2_100'; it knows .*mobilenetv2_100"),
        ("timm:hf-hub:some/thing", r"knows no network 'hf-hub:some/thing'"),
        ("timm:resnet18.nonsense", r"timm cannot make a base of resnet18\.nonsense: Invalid pretrained tag"),
        (f"timm:{SMALL}?nonsense=3", r"timm cannot make a base of .* with nonsense=3: .*nonsense"),
        ("timm:vit_tiny_patch16_224", r"no features at 1/4 or a little coarser \(only at 1/16\); name a convolutional"),
        ("timm:swin_tiny_patch4_window7_224", r"does not give its features for images of any size"),
        (f"timm:{SMALL}?mean=a", r"mean of a base must be one number or three, such as mean=0\.5; got 'a'"),
        (f"timm:{SMALL}?mean=1,2", r"mean of a base must be one number or three"),
        (f"timm:{SMALL}?std=0", r"std of a base must be one positive number or three"),
    ],
)
def test_bases_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        made(text)


def test_a_hub_out_of_reach_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"could not be loaded from .*base_weights=PATH.*base_weights='none'"):
        made(f"timm:{SMALL}", None)


def test_weights_in_the_hubs_cache_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name = timm.create_model(SMALL).pretrained_cfg["hf_hub_id"]
    folder = tmp_path / f"models--{name.replace('/', '--')}"
    (folder / "snapshots" / "0").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    path = weights_of(SMALL, folder / "snapshots" / "0" / "model.safetensors")
    local = made(f"timm:{SMALL}", path, channels=1)
    fetched = made(f"timm:{SMALL}", None, channels=1)
    assert fetched.trained
    for key, value in local.network.state_dict().items():
        torch.testing.assert_close(fetched.network.state_dict()[key], value, msg=key)
    torch.testing.assert_close(fetched.shift, local.shift)


def test_trained_weights_learn_slowly_and_keep_their_statistics(tmp_path: Path, runtime: Runtime) -> None:
    path = weights_of(SMALL, tmp_path / "weights.safetensors")
    spec = made(f"timm:{SMALL}").spec

    def moved(net: Backbone, slow: nn.Module | None) -> tuple[float, float]:
        before = {k: v.clone() for k, v in net.network.state_dict().items()}

        def make(rng: np.random.Generator) -> tuple[Tensor, ...]:
            return (torch.from_numpy(rng.normal(2, 1, (2, 3, *(spec.input_size(4),) * 2)).astype(np.float32)),)

        train(net, make, lambda out: out.square().mean(), runtime, steps=10, seed=0, slow=slow)
        after = net.network.state_dict()
        shift = [float((after[k] - before[k]).abs().max()) for k in ("conv_stem.weight", "bn1.running_mean")]
        return shift[0], shift[1]

    known = made(f"timm:{SMALL}", path)
    slowly, still = moved(known, known.stages)
    freely, astray = moved(made(f"timm:{SMALL}"), None)
    assert still == 0 < astray
    # AdamW moves a weight by about the rate, however steep the loss.
    assert slowly == pytest.approx(freely / 3, rel=0.1)
