"""Tiny models and images that all test modules share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from coarse2fine import analyze
from coarse2fine.bench.data import BenchScene, digit_split
from coarse2fine.model import CascadeStage, Geometry, Model
from coarse2fine.models.backbone import Backbone, design
from coarse2fine.models.base import Base
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.firing import Firing, calibrate_firing
from coarse2fine.models.runtime import Runtime
from coarse2fine.refiners.detection import DetectionRefiner
from coarse2fine.refiners.novelty import LABELS, NoveltyRefiner
from coarse2fine.refiners.protocol import Label
from tests.refining import relabelled

BASE = "4/2:4 4/2:4 3:4 1:4 1:1"
REFINER = "4/2:8 3:8 4/2:12 4/2:16 1:6"
GLANCE = "4/2:4 4/2:4 4/2:4 1:1"
ENCODER = "4/2:8 4/2:8 1:6"

MakeImage = Callable[..., NDArray[np.uint8]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """For each test: threads that others start may set the number of the whole process."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """Programs that are begun in the background ignore Ctrl-C, and those that they begin do so too."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@register_flop_formula(torch.ops.aten.mkldnn_convolution)
def _onednn_flop(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """What torch counts for its other convolutions."""
    return int(conv_flop_count(x, weight, out_shape))


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    return Runtime.choose("cpu", "fp32")


@pytest.fixture(scope="session")
def make_image() -> MakeImage:
    """Soft random blobs with some noise; (h, w) or (h, w, 3)."""

    def make(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
        rng = np.random.default_rng(seed)
        coarse = rng.random((-(-height // 12) + 1, -(-width // 12) + 1, channels))
        soft = np.kron(coarse, np.ones((12, 12, 1)))[:height, :width]
        pixels = (soft * 200 + rng.random((height, width, channels)) * 55).astype(np.uint8)
        return pixels[..., 0] if channels == 1 else pixels

    return make


@pytest.fixture(scope="session")
def write_damaged() -> Callable[[Path, NDArray[np.uint8]], None]:
    """Write RGB pixels as a TIFF of which one tile of 64 x 64 pixels, the sixth, cannot be decoded."""

    def write(path: Path, pixels: NDArray[np.uint8]) -> None:
        tifffile.imwrite(path, pixels, tile=(64, 64), compression="zlib", photometric="rgb")
        with tifffile.TiffFile(path) as file:
            offset = file.pages.first.dataoffsets[5]
        content = bytearray(path.read_bytes())
        content[offset : offset + 40] = b"\xff" * 40
        path.write_bytes(content)

    return write


@pytest.fixture
def plain_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture of a saved result is its overview alone: drawing takes most of the time of saving a small result."""

    def save(picture: Any, path: Path, kind: str) -> Path:
        path.write_bytes(cv2.imencode(f".{kind}", picture.overview[0])[1].tobytes())
        return path

    monkeypatch.setattr("coarse2fine.results.figure.Picture.save", save)


def lively_net(channels: int, text: str, seed: int) -> ConvStack:
    """A random net whose answers vary from place to place."""
    torch.manual_seed(seed)
    net = ConvStack(StackSpec.parse(channels, text))
    for conv in net.convs:
        torch.nn.init.kaiming_normal_(conv.weight)  # type: ignore[arg-type]
    return net.eval()


def _firing(base: Base, side: int = 300) -> Firing:
    rng = np.random.default_rng(5)
    noise = torch.from_numpy(rng.normal(0, 1, (1, base.spec.in_channels, side, side)).astype(np.float32))
    with torch.inference_mode():
        planes = base.features(noise)[-1]
        own = base.head(planes)[0, 0].reshape(-1).numpy()
    high = planes[0].flatten(1).T.contiguous().numpy()
    chance = 1 / (1 + np.exp(-(high @ rng.normal(0, 1, high.shape[1]) - 1.5)))
    return calibrate_firing(high, own, (rng.random(len(high)) < chance).astype(np.float32))


def _detector(channels: int) -> Model:
    base = lively_net(channels, BASE, 1)
    refiner = lively_net(channels, REFINER, 2)
    with torch.no_grad():
        refiner.convs[-1].weight.mul_(0.3)  # type: ignore[operator]
    return Model(
        name="tiny",
        geometry=Geometry(cell=8, scan_downsample=2, refine_downsample=1),
        mean=(0.4,) * channels,
        std=(0.25,) * channels,
        base=base,
        refiner=DetectionRefiner(refiner, (Label("left"), Label("right"))),
        firing=_firing(base),
        threshold=0.6,
        tau=0.4,
        provenance={"made_for": "tests"},
    )


@pytest.fixture(scope="session")
def detector() -> Model:
    """Reads RGB; two classes of objects."""
    return _detector(3)


@pytest.fixture(scope="session")
def grey_detector() -> Model:
    return _detector(1)


@pytest.fixture(scope="session")
def zoom_detector(detector: Model) -> Model:
    """Reads RGB; a glance at 1/4 with cells of 32 pixels comes before the base."""
    net = lively_net(3, GLANCE, 4)
    return replace(detector, name="tiny zoom", cascade=(CascadeStage(net, 32, 4, _firing(net, 1200), 0.2),))


@pytest.fixture(scope="module")
def squares_by_macs() -> Iterator[None]:
    """Squares for the next stage of a cascade are merged by multiply-adds alone, which are few in tiny nets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coarse2fine.steps.scan._SQUARE_MACS", 0)
        yield


@pytest.fixture(scope="session")
def timm_detector(detector: Model) -> Model:
    """Reads RGB; its base is a random network of timm."""
    torch.manual_seed(6)
    base = Backbone(design(3, "mobilenetv2_035", {}, 4))
    noise = torch.randn(4, 3, *(base.spec.input_size(8),) * 2)
    with torch.inference_mode():
        for _ in range(8):
            base.train()(noise)  # batch norms take their statistics from it
    base.eval()
    return replace(detector, name="tiny of timm", base=base, firing=_firing(base, base.spec.input_size(64)))


@pytest.fixture(scope="session")
def explorer() -> Model:
    encoder = lively_net(3, ENCODER, 3)
    return Model(
        name="tiny explorer",
        geometry=Geometry(cell=8, scan_downsample=2, refine_downsample=1, fine=2),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        base=encoder,
        refiner=NoveltyRefiner(encoder, LABELS),
        threshold=0.99,
    )


@pytest.fixture(scope="session")
def digits() -> BenchScene:
    return digit_split(512).test[0]


@pytest.fixture(scope="session")
def sparse(grey_detector: Model, digits: BenchScene) -> Model:
    """Untrained, but with some 40 finds in the scene of digits and a default that looks at a part of it."""
    model = relabelled(replace(grey_detector, threshold=0.01), Label("2"), Label("3"))
    found = analyze(digits.image, model, budget=1.0).regions
    plan = analyze(digits.image, model, budget=0.4).plan
    tau = float(plan.scores[-1])
    taus = {"0.9": tau, "0.95": tau / 2, "0.99": tau / 10}
    return replace(model, threshold=found[40].score, tau=tau, provenance={"taus": taus})
