"""A convolutional network of timm as a base: its stages, a neck that sums them on the cells' grid, a linear head.

timm's convolutions pad at the border, so activations near a block's border depend on where it lies. A halo is computed
and cropped. If the receptive field of the stages in use reaches no farther than `MOST_MARGIN`, the halo covers it, and
a block's answer equals the whole image's up to rounding. If it reaches farther, or a stage pools over the whole block
(squeeze and excitation), answers differ by some hundredths of their standard deviation; they are the same in every run,
since blocks lie on a fixed grid.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Base, round_up
from .errors import ModelError
from .timm_text import PREFIX, argument_values, parse_network

MOST_MARGIN = 80
_NECK = 64
_MOST_NECK, _MOST_REDUCTION = 4096, 256
_EXAMPLES = "mobilenetv2_100, resnet18, convnext_atto"


@dataclass(frozen=True)
class BackboneSpec:
    """The shape of a `Backbone`.

    Parameters
    ----------
    in_channels : int
        Channels of the input image.
    name : str
        timm's name of the network.
    arguments : tuple of (str, str)
        Arguments of the network, such as ``("pad_type", "same")``.
    stride : int
        Input pixels from one cell to the next.
    reductions : tuple of int
        Input pixels from one position to the next, for each stage in use; increasing multiples of `stride`.
    offset : int
        Shift of the network's receptive field to the right of and below each cell's centre, in input pixels, as its
        padding causes it (negative: to the left and above). The input is shifted to compensate.
    margin : int
        Halo on every side of a block, in input pixels; a multiple of the last reduction.
    neck : int
        Channels of the high-level map.
    """

    in_channels: int
    name: str
    arguments: tuple[tuple[str, str], ...]
    stride: int
    reductions: tuple[int, ...]
    offset: int
    margin: int
    neck: int = _NECK

    @classmethod
    def parse(cls, in_channels: int, text: str) -> Self:
        """Build from its text form.

        Example: ``"timm:mobilenetv2_100?pad_type=same stride=4 stages=4,8 offset=3 margin=40 neck=64"``.
        """
        network, *words = text.split()
        name, arguments = parse_network(network)
        sizes = dict(word.split("=") for word in words)
        reductions = tuple(int(r) for r in sizes["stages"].split(","))
        stride, offset, margin, neck = (int(sizes[key]) for key in ("stride", "offset", "margin", "neck"))
        whole = stride > 0 and all(r % stride == 0 for r in reductions) and sorted({*reductions}) == [*reductions]
        if not (whole and stride <= reductions[0] and reductions[-1] <= _MOST_REDUCTION and 0 < neck <= _MOST_NECK):
            raise ValueError(f"expected increasing stages, multiples of the stride, and a neck, got {text!r:.200}")
        if margin % reductions[-1] or not (abs(offset) <= MOST_MARGIN and 0 <= margin < MOST_MARGIN + reductions[-1]):
            raise ValueError(f"expected a margin of whole stages, no larger than {MOST_MARGIN}, got {text!r:.200}")
        return cls(in_channels, name, tuple(arguments.items()), stride, reductions, offset, margin, neck)

    def __str__(self) -> str:
        arguments = "&".join(f"{key}={value}" for key, value in self.arguments)
        stages = ",".join(str(r) for r in self.reductions)
        return (
            f"{PREFIX}{self.name}{'?' if arguments else ''}{arguments} "
            f"stride={self.stride} stages={stages} offset={self.offset} margin={self.margin} neck={self.neck}"
        )

    @property
    def align(self) -> int:
        """Cells along one side of a position of the last stage; blocks start and end at multiples of it."""
        return self.reductions[-1] // self.stride

    def input_size(self, cells: int) -> int:
        """Input pixels along one side that give `cells` cells."""
        return cells * self.stride + 2 * self.margin

    def macs(self, cell_height: int, cell_width: int) -> int:
        """Multiply-adds of a block of cells, halo included; sides are rounded up to multiples of `align`."""
        height, width = (round_up(cells, self.align) for cells in (cell_height, cell_width))
        return _macs(self, height, width)

    @property
    def macs_per_cell(self) -> float:
        """Multiply-adds for a cell of an infinite image, without halo."""
        small, large = 4 * self.align, 5 * self.align
        grown = self.macs(large, large) - 2 * self.macs(large, small) + self.macs(small, small)
        return grown / self.align**2


class Backbone(Base):
    """Stages of a network of timm, a 1 x 1 neck for each, summed on the cells' grid, and a linear head.

    Parameters
    ----------
    spec : BackboneSpec
    pretrained : bool
        Load the network's weights from timm's hub or its local cache.

    Attributes
    ----------
    trained : bool
        Whether the network's weights are pretrained; if so, the statistics of its batch norms are kept.
    """

    spec: BackboneSpec

    def __init__(self, spec: BackboneSpec, *, pretrained: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.trained = pretrained
        found = _reductions(spec.name, spec.arguments)
        # Of several stages with the same reduction, the last one.
        last = [len(found) - 1 - found[::-1].index(r) for r in spec.reductions]
        options = {"features_only": True, "feature_cls": "getter", "out_indices": last}
        self.stages = _create(spec.name, spec.arguments, in_chans=spec.in_channels, pretrained=pretrained, **options)
        widths = self.stages.feature_info.channels()
        self.necks = nn.ModuleList(nn.Conv2d(width, spec.neck, 1, bias=False) for width in widths)
        self.norm = nn.BatchNorm2d(spec.neck)
        self.reader = nn.Conv2d(spec.neck, 1, 1)
        # From the model's normalisation to that of the weights; see `expect`.
        self.register_buffer("scale", torch.ones(spec.in_channels, 1, 1))
        self.register_buffer("shift", torch.zeros(spec.in_channels, 1, 1))

    @property
    def network(self) -> nn.Module:
        """The network of timm itself, without unused stages."""
        return self.stages.model  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; pretrained batch norms keep their statistics in both."""
        super().train(mode)
        if self.trained:
            self.stages.eval()
        return self

    def features(self, x: Tensor) -> list[Tensor]:
        """Activations of every stage in use, then the high-level map; halos cropped, so all cover the same square.

        The stages are timm's (some networks end a stage without a ReLU), each with one position for ``reduction x
        reduction`` input pixels; specialists read them. The high-level map is not negative.

        Parameters
        ----------
        x : Tensor, float, (n, c, h, w)
            A block with its halo, in the model's normalisation.
        """
        spec, ahead = self.spec, self.spec.offset
        # Zeros enter on one side and pixels are lost on the other, both within the halo, see `_margin`.
        x = functional.pad(x * self.scale + self.shift, (ahead, -ahead, ahead, -ahead))
        maps: list[Tensor] = self.stages(x)
        total = sum(
            functional.interpolate(neck(stage), scale_factor=reduction // spec.stride, mode="bilinear")
            for neck, stage, reduction in zip(self.necks, maps, spec.reductions, strict=True)
        )
        high = torch.relu(self.norm(self._cropped(total, spec.stride)))
        return [*(self._cropped(m, r) for m, r in zip(maps, spec.reductions, strict=True)), high]

    def expect(self, mean: Tensor, std: Tensor, own_mean: Tensor, own_std: Tensor) -> None:
        """Convert inputs from the model's normalisation to that of the weights, as the first step.

        Parameters
        ----------
        mean, std : Tensor, float, (c,)
            The model's normalisation, which inputs have.
        own_mean, own_std : Tensor, float, (c,)
            The normalisation that the weights were trained with.
        """
        self.scale = (std / own_std)[:, None, None]
        self.shift = ((mean - own_mean) / own_std)[:, None, None]

    def load_network(self, state: Mapping[str, Tensor]) -> None:
        """Load weights of timm's network; those of its classifier and of unused stages are ignored.

        Parameters
        ----------
        state : mapping of str to Tensor
            Weights by timm's names. RGB weights are adapted to grey images as timm does.

        Raises
        ------
        ModelError
            If weights are missing, have other shapes, or have unknown names.
        """
        from timm.models import adapt_input_conv  # noqa: PLC0415 - slow to import

        own, whole = self.network.state_dict(), _whole(self.spec.name, self.spec.arguments)
        classifier = _names(whole, "classifier")
        missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
        strange = [k for k in state if k not in whole.state_dict() and k.rpartition(".")[0] not in classifier]
        if missing or strange:
            raise ModelError(
                f"weights that do not belong to {self.spec.name}: {_some('missing', missing)}, "
                f"{_some('unknown', strange)}; expected weights of this network, with its arguments, by timm's names"
            )
        chosen = {k: v.float() if v.is_floating_point() else v for k, v in state.items() if k in own}
        for conv in _names(whole, "first_conv"):
            weight = f"{conv}.weight"
            if weight in chosen and chosen[weight].shape[1] != self.spec.in_channels:
                chosen[weight] = adapt_input_conv(self.spec.in_channels, chosen[weight])
        try:
            self.network.load_state_dict({**own, **chosen})
        except RuntimeError as error:
            raise ModelError(f"weights of other shapes than those of {self.spec.name}: {error}") from error
        self.trained = True

    def _cropped(self, plane: Any, reduction: int) -> Tensor:
        halo = self.spec.margin // reduction
        return plane[..., halo : plane.shape[-2] - halo, halo : plane.shape[-1] - halo]  # type: ignore[no-any-return]


def design(in_channels: int, name: str, arguments: Mapping[str, str], stride: int) -> BackboneSpec:
    """Choose the stages of a timm network for cells of `stride` input pixels, and the halo that they need.

    Parameters
    ----------
    in_channels : int
    name : str
        timm's name, with or without the tag of its weights.
    arguments : mapping of str to str
    stride : int

    Raises
    ------
    ModelError
        If timm does not know the network, or no stage is fine enough.
    """
    pairs = tuple(arguments.items())
    fitting = sorted({r for r in _reductions(name, pairs) if r % stride == 0})
    if not fitting or fitting[0] > max(4, 2 * stride):
        raise ModelError(
            f"{name} has no features at 1/{stride} or a little coarser (only at "
            f"{', '.join(f'1/{r}' for r in sorted(set(_reductions(name, pairs))))}); "
            f"name a convolutional network of timm, such as {_EXAMPLES}"
        )
    deepest = 2 * max(stride, fitting[0])
    spec = BackboneSpec(in_channels, name, pairs, stride, tuple(r for r in fitting if r <= deepest), 0, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        spec = replace(spec, offset=_offset(spec))
        return replace(spec, margin=_margin(spec))


def _offset(spec: BackboneSpec) -> int:
    """Shift of the receptive field from the cells' centres: centroid of the squared input gradient, random weights."""
    last = spec.reductions[-1]
    net = Backbone(replace(spec, margin=MOST_MARGIN // last * last)).train()
    side = net.spec.input_size(3 * spec.align)
    x = torch.randn(4, spec.in_channels, side, side, requires_grad=True)
    inner = slice(spec.align, 2 * spec.align)
    (gradient,) = torch.autograd.grad(_tried(net, x)[-1][..., inner, inner].square().sum(), x)
    weight = gradient.square().sum(dim=(0, 1))
    place = torch.arange(side) + 0.5 - side / 2
    return round(float((weight.sum(dim=0) + weight.sum(dim=1)) @ place / (2 * weight.sum())))


def _margin(spec: BackboneSpec) -> int:
    """Halo: how far a NaN input propagates, in whole positions of the last stage."""
    last = spec.reductions[-1]
    half = round_up(MOST_MARGIN + 1, last)
    # Double precision: torch then uses direct algorithms, in which NaN spreads exactly as far as the receptive field.
    net = Backbone(spec).eval().double()
    wide = torch.zeros(1, spec.in_channels, 4 * last, 2 * half, dtype=torch.float64)
    wide[..., :half] = torch.nan
    reach = 0
    for axis, strip in ((-1, wide), (-2, wide.transpose(-1, -2))):
        for x in (strip, strip.flip(axis)):
            felt = _tried(net, x)[-1].detach().isnan().any(dim=1).any(dim=-3 - axis)
            reach = max(reach, spec.stride * int(felt.sum()) - half)
    reach += abs(spec.offset)  # the shift brings the block's border nearer on one side
    if reach > MOST_MARGIN:  # a full halo would cost too much, and most of the gradient lies near the cell
        reach = MOST_MARGIN // 2
    return round_up(reach, last)


def _tried(net: Backbone, x: Tensor) -> list[Tensor]:
    """Features of an input of any size; an error if their shapes do not match the reductions."""
    spec = net.spec
    try:
        maps = net.features(x)
        expected = [tuple((n - 2 * spec.margin) // r for n in x.shape[2:]) for r in (*spec.reductions, spec.stride)]
        if [tuple(m.shape[2:]) for m in maps] == expected:
            return maps
        cause = f"its features have the shapes {[tuple(m.shape) for m in maps]} for input of {tuple(x.shape)}"
    except (RuntimeError, AssertionError, ValueError) as error:
        cause = str(error)
    raise ModelError(
        f"{spec.name} does not give its features for images of any size ({cause}); "
        f"name a convolutional network of timm, such as {_EXAMPLES}"
    )


def _reductions(name: str, arguments: tuple[tuple[str, str], ...]) -> list[int]:
    """Input pixels from one position to the next, of every stage of a network."""
    return [info["reduction"] for info in getattr(_whole(name, arguments), "feature_info", [])]


@lru_cache(maxsize=8)
def _whole(name: str, arguments: tuple[tuple[str, str], ...]) -> Any:
    """A network of timm with its classifier and without weights."""
    import timm  # noqa: PLC0415 - slow to import

    if not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=5, cutoff=0.5)
        raise ModelError(f"timm {timm.__version__} knows no network {name!r}; it knows {', '.join(near) or _EXAMPLES}")
    with torch.device("meta"):
        return _create(name, arguments)


def _create(name: str, arguments: tuple[tuple[str, str], ...], **more: Any) -> Any:
    import timm  # noqa: PLC0415 - slow to import

    try:
        return timm.create_model(name, **argument_values(arguments), **more)
    except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value}" for key, value in arguments)
        raise ModelError(f"timm cannot make a base of {name}{' with ' if given else ''}{given}: {error}") from error


def _names(whole: Any, role: str) -> tuple[str, ...]:
    """Names of a network's layers of one role ("classifier", "first_conv")."""
    names = whole.pretrained_cfg.get(role) or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _some(what: str, keys: list[str]) -> str:
    return f"{len(keys)} {what}" + (f" ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else "")


@lru_cache(maxsize=256)
def _macs(spec: BackboneSpec, cell_height: int, cell_width: int) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - slow to import

    net = _skeleton(spec)
    x = torch.empty(1, spec.in_channels, spec.input_size(cell_height), spec.input_size(cell_width), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return int(counter.get_total_flops()) // 2


@lru_cache(maxsize=8)
def _skeleton(spec: BackboneSpec) -> Backbone:
    """A net without weights, for counting operations."""
    with torch.device("meta"):
        return Backbone(spec).eval()
