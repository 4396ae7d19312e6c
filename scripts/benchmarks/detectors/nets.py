"""The detectors of torchvision that are compared, with anchors and levels that suit the annotated objects."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coarse2fine.models.errors import ModelError

FLOOR = 0.01
"""Least score of a find, so that curves of precision and recall are nearly whole."""
MOST = 300
"""Most finds in a tile."""
RCNN, RETINA = "Faster R-CNN", "RetinaNet"
# Side of a typical object in pixels of the net's input, and the scales with which it may be reached.
_TYPICAL, _LEAST_SCALE, _MOST_SCALE = 32.0, 0.25, 2.0
# Strides of MobileNet's stages as powers of two; a level of the pyramid has anchors of 1.4 and 2 strides. RetinaNet's
# begins at 8, as usual: its head costs much on each level.
_FIRST, _LAST, _FIRST_OF_RETINA = 2, 5, 3
_SMALLEST, _LARGEST = 0.02, 0.98
# All that the coarsest stage shrinks are multiples of this.
_ALIGN = 2**_LAST
_CROP, _TILE, _MOST_CONTEXT = 320, 512, 128
_LONG = 1.5
# Channels of the pyramid and of what reads it, a quarter of the usual: a step takes less, so there are more of them.
_WIDTH, _GROUPS = 64, 16
_PROPOSALS, _SAMPLED = 300, 128
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Shape:
    """Scale of the input and levels of the pyramid, chosen by the sizes of the annotated objects.

    Parameters
    ----------
    scale : float
        Pixels of the net's input for each pixel of the image, a power of two.
    first, last : int
        The finest and the coarsest stage of the pyramid, by their strides' powers of two; one level more follows.
    context : int
        Pixels of the image around a tile.
    ratios : tuple of float
        Heights of anchors over their widths.
    """

    scale: float
    first: int
    last: int
    context: int
    ratios: tuple[float, ...]

    @classmethod
    def of(cls, name: str, extents: NDArray[np.float64]) -> Shape:
        """The shape of a detector for objects of these heights and widths, (n, 2), in pixels of the image."""
        sides = np.sqrt(extents.prod(axis=1))
        scale = 2.0 ** round(math.log2(_TYPICAL / float(np.median(sides))))
        scale = min(max(scale, _LEAST_SCALE), _MOST_SCALE)
        small, large = (np.quantile(sides, (_SMALLEST, _LARGEST)) * scale).tolist()
        finest = _FIRST if name == RCNN else _FIRST_OF_RETINA
        first, last = (min(max(math.floor(math.log2(side / 2)), finest), _LAST) for side in (small, large))
        context = min(_ALIGN * math.ceil(large / 2 / _ALIGN), _MOST_CONTEXT)
        long = float(np.quantile(extents.max(axis=1) / extents.min(axis=1), 0.9)) > _LONG
        return cls(scale, first, last, round(context / scale), (0.5, 1.0, 2.0) if long else (1.0,))

    @property
    def crop(self) -> int:
        """Side of a training crop in pixels of the image."""
        return round(_CROP / self.scale)

    @property
    def tile(self) -> int:
        """Side of a tile in pixels of the image."""
        return round(_TILE / self.scale)

    @property
    def levels(self) -> int:
        """Levels of the pyramid."""
        return self.last - self.first + 2

    def anchors(self) -> Any:
        """Anchors of each level."""
        from torchvision.models.detection.anchor_utils import AnchorGenerator  # noqa: PLC0415 (slow to import)

        strides = [2.0**level for level in range(self.first, self.first + self.levels)]
        return AnchorGenerator(tuple((math.sqrt(2) * s, 2 * s) for s in strides), (self.ratios,) * self.levels)


def detector(
    name: str,
    shape: Shape,
    classes: int,
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    weights: Path | None = None,
) -> nn.Module:
    """A detector in training mode; its random weights follow torch's seed.

    Parameters
    ----------
    name : str
        `RCNN`: Faster R-CNN with MobileNetV3-large, ``fasterrcnn_mobilenet_v3_large_320_fpn`` with a pyramid of the
        levels that the shape names, since the usual one begins at a stride of 32. `RETINA`: RetinaNet with
        MobileNetV2, a narrow pyramid and group normalisation.
    shape : Shape
    classes : int
        Without the background.
    mean, std : ndarray, float32, (3,)
        Normalisation of pixels in 0..1, for nets without weights.
    weights : Path, optional
        Weights of the backbone by timm's names, for RetinaNet; see `timm_backbone`.
    """
    from torchvision.models import detection, mobilenet_v2, mobilenet_v3_large  # noqa: PLC0415 (slow to import)
    from torchvision.ops import MultiScaleRoIAlign  # noqa: PLC0415

    side = round(shape.crop * shape.scale)
    normal = (mean.tolist(), std.tolist()) if weights is None else (_HALF, _HALF)
    common = {"min_size": side, "max_size": side, "image_mean": normal[0], "image_std": normal[1]}
    if name == RCNN:
        pyramid = _pyramid(mobilenet_v3_large(weights=None).features, shape, _WIDTH)
        names = [*map(str, range(shape.levels - 1)), "pool"]
        made = detection.FasterRCNN(
            pyramid,
            classes + 1,
            rpn_anchor_generator=shape.anchors(),
            box_roi_pool=MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
            # Small objects overlap the nearest anchor little.
            rpn_fg_iou_thresh=0.5,
            rpn_post_nms_top_n_train=2 * _PROPOSALS,
            rpn_post_nms_top_n_test=_PROPOSALS,
            box_batch_size_per_image=_SAMPLED,
            box_score_thresh=FLOOR,
            box_detections_per_img=MOST,
            **common,
        )
    else:
        features = mobilenet_v2(weights=None).features if weights is None else timm_backbone(weights)
        anchors = shape.anchors()
        norm = partial(nn.GroupNorm, _GROUPS)
        head = detection.retinanet.RetinaNetHead(
            _WIDTH, anchors.num_anchors_per_location()[0], classes, norm_layer=norm
        )
        pyramid = _pyramid(features, shape, _WIDTH)
        limits = {"score_thresh": FLOOR, "detections_per_img": MOST}
        made = detection.RetinaNet(pyramid, classes, anchor_generator=anchors, head=head, **limits, **common)
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.1  # MobileNet's own is for a hundred thousand steps
    made.to(memory_format=torch.channels_last)
    return made.train()  # type: ignore[no-any-return]


def _pyramid(features: nn.Sequential, shape: Shape, width: int) -> nn.Module:
    """A feature pyramid on the last blocks of MobileNet's stages."""
    from torchvision.models.detection.backbone_utils import BackboneWithFPN  # noqa: PLC0415 (slow to import)

    blocks: Any = features
    # The stem has the first stride, and the last layer only widens.
    strided = [i for i, block in enumerate(blocks) if getattr(block, "_is_cn", False)]
    ends = [i - 1 for i in strided[1:]] + [len(blocks) - 2]
    chosen = ends[shape.first - _FIRST : shape.last - _FIRST + 1]
    layers = {str(index): str(number) for number, index in enumerate(chosen)}
    found: nn.Module = BackboneWithFPN(blocks, layers, [blocks[i].out_channels for i in chosen], width)
    return found


def timm_backbone(path: Path) -> nn.Sequential:
    """MobileNetV2 of torchvision with weights of timm's ``mobilenetv2_100`` with ``pad_type="same"``.

    Both have the same layers in the same order under other names; those with a stride differ in padding. Inputs are
    from -1 to 1, and their sides multiples of 32.

    Raises
    ------
    ModelError
        If the file cannot be read or holds another network.
    """
    import timm  # noqa: PLC0415 (slow to import)
    from safetensors import SafetensorError  # noqa: PLC0415
    from torchvision.models import mobilenet_v2  # noqa: PLC0415

    wanted = timm.create_model("mobilenetv2_100").state_dict()
    try:
        given = timm.models.load_state_dict(str(path), weights_only=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read as weights: {error}") from error
    if {k: v.shape for k, v in given.items()} != {k: v.shape for k, v in wanted.items()}:
        raise ModelError(f"{path} does not hold the weights of timm's mobilenetv2_100")
    net = mobilenet_v2(weights=None)
    net.load_state_dict(dict(zip(net.state_dict(), (given[name].float() for name in wanted), strict=True)))
    for block in [part for part in net.features.modules() if isinstance(part, nn.Sequential)]:
        if len(block) and isinstance(block[0], nn.Conv2d) and block[0].stride == (2, 2):
            block[0].padding = (0, 0)
            block[0] = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), block[0])
    return net.features  # type: ignore[no-any-return]


@torch.no_grad()
def recalibrate(net: nn.Module, images: list[torch.Tensor]) -> None:
    """Give batch norms the statistics of images (c, h, w) without a change of what they answer.

    Norms whose statistics were folded into weights would otherwise change all activations in the first training step.
    """

    def learn(norm: Any, given: tuple[torch.Tensor]) -> None:
        variance, mean = torch.var_mean(given[0], (0, 2, 3), correction=0)
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        norm.bias += scale * (mean - norm.running_mean)
        norm.weight.copy_(scale * torch.sqrt(variance + norm.eps))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    inner: Any = net
    norms = [part for part in inner.backbone.modules() if isinstance(part, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(learn) for norm in norms]
    inner.eval()
    inner.backbone(inner.transform(images)[0].tensors)
    inner.train()
    for hook in hooks:
        hook.remove()
