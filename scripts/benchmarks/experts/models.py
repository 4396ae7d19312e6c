"""Real models as experts, each named by ``benchmarks.experts.models:NAME``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from coarse2fine.tiling.errors import MissingExtraError

Pixels = NDArray[np.uint8]
_DETECTOR = "models/ch_PP-OCRv4_det_infer.onnx"
UNET_WIDTHS = {"unet": (8, 16, 32, 64), "unet_small": (4, 8, 12, 16)}
"""Channels of each U-Net's levels."""
RCNN_SIDE = 320
"""Side to which tiles are scaled by the Faster R-CNN's own preprocessing."""


def text_detector() -> Callable[[Pixels], NDArray[np.float32]]:
    """The text detector (DBNet) of the package rapidocr-onnxruntime: probabilities of text, (n, 1, h, w).

    Sides of tiles must be multiples of 32.

    Raises
    ------
    ImportError
        If the package, or onnxruntime, is missing.
    """
    found = find_spec("rapidocr_onnxruntime")
    if found is None or not found.submodule_search_locations or find_spec("onnxruntime") is None:
        raise MissingExtraError("rapidocr-onnxruntime", "the text detector", "experts-benchmark")
    import onnxruntime  # noqa: PLC0415 (an extra)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    path = Path(found.submodule_search_locations[0]) / _DETECTOR
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def detect(pixels: Pixels) -> NDArray[np.float32]:
        # Blue, green, red, from -1 to 1, as its package feeds it.
        x = np.ascontiguousarray(pixels[..., ::-1].transpose(0, 3, 1, 2), np.float32) / 127.5 - 1
        return np.asarray(session.run(None, {name: x})[0], np.float32).clip(0, 1)

    return detect


class UNet(nn.Module):
    """A small U-Net with one logit a pixel; takes (n, 3, h, w) from 0 to 1, sides multiples of 8.

    Parameters
    ----------
    name : str
        Its key in `UNET_WIDTHS`.
    """

    def __init__(self, name: str = "unet") -> None:
        super().__init__()
        widths = UNET_WIDTHS[name]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip((3, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(_block(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (n, 1, h, w)."""
        x = (x - 0.5) * 4
        passed = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            passed.append(x)
        for block, skipped in zip(self.up, passed[-2::-1], strict=True):
            x = block(torch.cat([functional.interpolate(x, scale_factor=2.0), skipped], dim=1))
        logits: torch.Tensor = self.head(x)
        return logits


def _block(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (before, after):
        layers += [nn.Conv2d(width, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


class UNetExpert(nn.Module):
    """A U-Net that takes uint8 tiles (n, h, w, 3), and returns probabilities (n, 1, h, w)."""

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.net(pixels.permute(0, 3, 1, 2).float() / 255))


def unet(weights: str, name: str = "unet") -> Any:
    """A U-Net of `benchmarks.experts.training`, from its file of weights; a map of objects."""
    from coarse2fine import Adapter  # noqa: PLC0415

    net = UNet(name)
    net.load_state_dict(torch.load(weights, weights_only=True))
    module = UNetExpert(net).eval()
    return Adapter(_called(module), "map", sha256=_hash(weights), module=module)


def unet_small(weights: str) -> Any:
    """The smaller U-Net; see `unet`."""
    return unet(weights, "unet_small")


def rcnn_module(classes: int = 2) -> nn.Module:
    """Torchvision's Faster R-CNN with MobileNetV3 and FPN for tiles of `RCNN_SIDE`, without weights."""
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn  # noqa: PLC0415 (slow to import)

    module: nn.Module = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=classes,
        min_size=RCNN_SIDE,
        max_size=RCNN_SIDE,
        box_score_thresh=0.3,
    )
    return module


def rcnn(weights: str) -> Any:
    """The Faster R-CNN of `benchmarks.experts.training`, from its file of weights."""
    from coarse2fine import Adapter  # noqa: PLC0415

    module = rcnn_module()
    module.load_state_dict(torch.load(weights, weights_only=True))
    wrapped = RCNNExpert(module).eval()

    def detect(pixels: Pixels) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            answers = wrapped(torch.from_numpy(pixels))
        return [
            np.concatenate([a["boxes"].numpy(), a["scores"].numpy()[:, None], np.zeros((len(a["scores"]), 1))], axis=1)
            for a in answers
        ]

    return Adapter(detect, "boxes", sha256=_hash(weights), module=wrapped)


class RCNNExpert(nn.Module):
    """A detector that takes uint8 tiles (n, h, w, 3), and returns torchvision's mappings."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: torch.Tensor) -> Any:
        return self.net(list(pixels.permute(0, 3, 1, 2).float() / 255))


class EncoderExpert(nn.Module):
    """A timm encoder that takes uint8 tiles (n, h, w, 3), and returns vectors (n, d)."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("scale", torch.ones(1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.net(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
        return (features - self.mean) / self.scale


def encoder_module(weights: str) -> EncoderExpert:
    """MobileNetV2 of timm with weights in a safetensors file, as an encoder."""
    import timm  # noqa: PLC0415 (slow to import)
    from safetensors.torch import load_file  # noqa: PLC0415

    net = timm.create_model("mobilenetv2_100", pad_type="same")
    net.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    net.reset_classifier(0)
    return EncoderExpert(net).eval()


def encoder(weights: str, usual: str) -> Any:
    """An encoder whose vectors have length 1 where the usual ends; see `benchmarks.experts.training.usual_vectors`."""
    from coarse2fine import Adapter  # noqa: PLC0415

    module = encoder_module(weights)
    with np.load(usual) as known:
        module.mean, module.scale = (torch.from_numpy(known[name]) for name in ("mean", "scale"))
    return Adapter(_called(module), "vectors", sha256=_hash(weights, usual), module=module)


def unusual(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Interest of vectors, from 0 to 1: 0.5 at length 1."""
    length = np.linalg.norm(vectors, axis=1)
    found: NDArray[np.float32] = (length / (1 + length)).astype(np.float32)
    return found


def _called(module: nn.Module) -> Callable[[Pixels], NDArray[np.float32]]:
    def call(pixels: Pixels) -> NDArray[np.float32]:
        with torch.inference_mode():
            answer: torch.Tensor = module(torch.from_numpy(pixels))
        found: NDArray[np.float32] = answer.numpy()
        return found

    return call


def _hash(*paths: str) -> str:
    from coarse2fine.experts.adapters.weights import file_hash  # noqa: PLC0415

    return "".join(file_hash(path)[: 64 // len(paths)] for path in paths)
