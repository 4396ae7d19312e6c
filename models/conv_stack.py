"""Small convolutional nets without padding, each output cell in the centre of its receptive field.

So a window's answer equals that of a pass over the whole image. A window needs a halo, which shrinks layer by layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from .base import Base

_MOST, _MOST_STAGES = 4096, 64


@dataclass(frozen=True, slots=True)
class Stage:
    """One convolution: kernel and stride in input pixels of the stage, and output channels."""

    kernel: int
    stride: int
    channels: int


@dataclass(frozen=True)
class StackSpec:
    """The shape of a `ConvStack`.

    Parameters
    ----------
    in_channels : int
        Channels of the input image.
    stages : tuple of Stage
        From input to output. The last stage is linear, all others end in a ReLU.

    Raises
    ------
    ValueError
        If the receptive field cannot be centred on the cell (its size and the stride must be both odd or both even).
    """

    in_channels: int
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if len(self.stages) < 2:
            raise ValueError(f"a net needs at least two stages, features and a linear reader; got {len(self.stages)}")
        sizes = [n for s in self.stages for n in (s.kernel, s.stride, s.channels)]
        if min(sizes) < 1 or max(sizes) > _MOST or len(self.stages) > _MOST_STAGES or self.field > _MOST:
            raise ValueError(
                f"expected up to {_MOST_STAGES} stages of numbers from 1 to {_MOST}, and a receptive field of up to "
                f"{_MOST} px; got {str(self)!r:.100}"
            )
        if (self.field - self.stride) % 2:
            raise ValueError(
                f"a receptive field of {self.field} px cannot be centred on cells of {self.stride} px; "
                "use even kernels for stride 2 and odd kernels for stride 1"
            )

    @classmethod
    def parse(cls, in_channels: int, text: str) -> Self:
        """Build from text such as ``"4/2:16 3:24 1:8"`` (kernel/stride:channels; stride 1 is left out)."""
        stages = []
        for word in text.split()[: _MOST_STAGES + 1]:
            size, channels = word.split(":")
            kernel, _, stride = size.partition("/")
            stages.append(Stage(int(kernel), int(stride or 1), int(channels)))
        return cls(in_channels, tuple(stages))

    def __str__(self) -> str:
        return " ".join(
            f"{s.kernel}/{s.stride}:{s.channels}" if s.stride > 1 else f"{s.kernel}:{s.channels}" for s in self.stages
        )

    @property
    def stride(self) -> int:
        """Input pixels from one output cell to the next."""
        stride = 1
        for stage in self.stages:
            stride *= stage.stride
        return stride

    @property
    def field(self) -> int:
        """Side of the receptive field of one output cell, in input pixels."""
        field, jump = 1, 1
        for stage in self.stages:
            field += (stage.kernel - 1) * jump
            jump *= stage.stride
        return field

    @property
    def margin(self) -> int:
        """Halo on every side of a block of cells, in input pixels."""
        return (self.field - self.stride) // 2

    @property
    def align(self) -> int:
        """Blocks may start at any cell."""
        return 1

    def input_size(self, cells: int) -> int:
        """Input pixels along one side that give `cells` output cells."""
        return cells * self.stride + 2 * self.margin

    def macs(self, cell_height: int, cell_width: int) -> int:
        """Multiply-adds of a block of cells, its halo included."""
        total = 0
        height, width = self.input_size(cell_height), self.input_size(cell_width)
        channels = self.in_channels
        for s in self.stages:
            height, width = (height - s.kernel) // s.stride + 1, (width - s.kernel) // s.stride + 1
            total += height * width * s.kernel**2 * channels * s.channels
            channels = s.channels
        return total

    @property
    def macs_per_cell(self) -> float:
        """Multiply-adds for a cell of an infinite image, without halo."""
        total, jump, channels = 0.0, 1, self.in_channels
        for s in self.stages:
            jump *= s.stride
            total += s.kernel**2 * channels * s.channels * (self.stride / jump) ** 2
            channels = s.channels
        return total


class ConvStack(Base):
    """A net of valid, centred convolutions; batch norm in training only (see `folded`).

    Parameters
    ----------
    spec : StackSpec
    batch_norm : bool
        Normalise between convolution and ReLU, for training; saved nets are folded.
    """

    spec: StackSpec

    def __init__(self, spec: StackSpec, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        channels = spec.in_channels
        for index, s in enumerate(spec.stages):
            last = index == len(spec.stages) - 1
            normed = batch_norm and not last
            self.convs.append(BatchInvariantConv2d(channels, s.channels, s.kernel, s.stride, bias=not normed))
            self.norms.append(nn.BatchNorm2d(s.channels) if normed else nn.Identity())
            channels = s.channels

    def features(self, x: Tensor) -> list[Tensor]:
        """Activations of every stage but the last, after the ReLU; the last of them is the high-level one.

        Parameters
        ----------
        x : Tensor, float, (n, c, h, w)
        """
        activations = []
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            x = rectified(norm(conv(x)))
            activations.append(x)
        return activations

    def high(self, x: Tensor) -> Tensor:
        """The high-level activations alone; the memory of lower ones is reused."""
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            x = rectified(norm(conv(x)))
        return x

    @property
    def reader(self) -> nn.Conv2d:  # type: ignore[override]
        """The last, linear stage."""
        return self.convs[-1]  # type: ignore[return-value]

    def folded(self) -> ConvStack:
        """A copy with each batch norm folded into its convolution, in evaluation mode."""
        net = ConvStack(self.spec)
        for conv, norm, plain in zip(self.convs, self.norms, net.convs, strict=True):
            weight, bias = fold(conv, norm)
            plain.load_state_dict({"weight": weight, "bias": bias})
        return net.eval()


_ONEDNN = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class BatchInvariantConv2d(nn.Conv2d):
    """A convolution without padding whose bits depend neither on the batch size nor on the number of threads.

    For few small images in float32 torch uses its own algorithm instead of oneDNN, with other rounding, so values near
    a threshold would depend on the batch size. Here oneDNN is used whenever no gradient is needed.
    """

    def forward(self, x: Tensor) -> Tensor:
        plain = x.device.type != "cpu" or x.dtype != torch.float32 or not _ONEDNN
        if plain or torch.is_grad_enabled() or not x.numel():
            return super().forward(x)
        return torch.mkldnn_convolution(x, self.weight, self.bias, (0, 0), self.stride, (1, 1), 1)


def rectified(x: Tensor) -> Tensor:
    """ReLU in place.

    Without gradients, bfloat16 on a CPU is clamped as int16: a negative float has its sign bit set, like a negative
    integer. torch's own ReLU of bfloat16 takes four times as long, more than the convolution before it.
    """
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and not x.requires_grad:
        x.view(torch.int16).clamp_(min=0)
        return x
    return torch.relu_(x)


def fold(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the batch norm after it folded in."""
    weight = conv.weight.detach().float()
    bias = conv.bias.detach().float() if conv.bias is not None else torch.zeros(len(weight))
    if isinstance(norm, nn.BatchNorm2d):
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        weight = weight * scale[:, None, None, None]
        bias = (bias - norm.running_mean) * scale + norm.bias.detach()
    return weight, bias
