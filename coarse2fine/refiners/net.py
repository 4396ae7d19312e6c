"""Base of the built-in refiners: a convolutional net, with specialists for some of its cells."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar, Self

import torch
from numpy.typing import NDArray

from coarse2fine.bundle import under
from coarse2fine.model_file import filled, weights
from coarse2fine.models.base import Base
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.feature_maps import FeatureMaps
from coarse2fine.refiners.protocol import TIMED_SECONDS, TIMED_SIDE, ImageContext, Label, Refiner
from coarse2fine.specialists.groups import SpecialistGroups
from coarse2fine.specialists.tree import SpecialistTree

_PREFIX = "refiner."


@dataclass(frozen=True)
class NetRefiner(Refiner):
    """A convolutional net that refines.

    Parameters
    ----------
    net : ConvStack
    labels : tuple of Label
    downsample : int
        Full-resolution pixels per pixel of the plane that the net reads.
    tree : SpecialistTree, optional
    groups : SpecialistGroups, optional
    """

    net: ConvStack
    labels: tuple[Label, ...]
    downsample: int = 1
    tree: SpecialistTree | None = None
    groups: SpecialistGroups | None = None

    aside: ClassVar[float] = 1
    """Factor on the expected multiply-adds of specialists that a plan leaves room for."""

    @property
    def channels(self) -> int:  # type: ignore[override]
        return self.net.spec.in_channels

    @property
    def stride(self) -> int:  # type: ignore[override]
        return self.net.spec.stride

    @property
    def margin(self) -> int:  # type: ignore[override]
        return self.net.spec.margin

    @property
    def specialists(self) -> tuple[SpecialistGroups | SpecialistTree, ...]:  # type: ignore[override]
        """The groups and the tree, if present."""
        return tuple(each for each in (self.groups, self.tree) if each is not None)

    @property
    def macs_per_cell(self) -> float:
        """Multiply-adds of the net for a fine cell, without halo."""
        return self.net.spec.macs_per_cell

    def macs(self, height: int, width: int) -> int:
        return self.net.spec.macs(height, width)

    def expected_macs(self, height: int, width: int) -> int:
        """Multiply-adds of one window, with its halo and the multiply-adds set aside for specialists."""
        aside = sum(self.aside * each.macs_per_cell for each in self.specialists)
        return self.macs(height, width) + round(aside * height * width)

    def coarser(self, factor: Fraction) -> NetRefiner:
        """The refiner with a plane that is coarser by a factor."""
        return replace(self, downsample=int(self.downsample * factor))

    def macs_per_second(self, context: ImageContext) -> float:
        """Speed of the net alone, measured on this machine."""
        net, runtime = context.runtime.place(self.net), context.runtime
        side = self.net.spec.input_size(TIMED_SIDE)
        window = torch.zeros((1, self.channels, side, side), device=runtime.device, dtype=runtime.dtype)
        macs, start = 0, 0.0
        with torch.inference_mode():
            net(window)  # warm-up: the first call is slower
            start = time.perf_counter()
            while time.perf_counter() - start < TIMED_SECONDS:
                net(window)[0, 0, 0, 0].item()
                macs += self.macs(TIMED_SIDE, TIMED_SIDE)
        return macs / (time.perf_counter() - start)

    def details(self) -> list[str]:
        return [
            f"{str(each).partition(chr(10))[0]}; {each.macs_per_cell / self.macs_per_cell:.1%} more where it refines"
            for each in self.specialists
        ]

    def route(self, node: int) -> tuple[int, ...]:
        return () if self.tree is None else self.tree.route(node)

    def describe(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "refiner": str(self.net.spec),
            "labels": [asdict(label) for label in self.labels],
        }
        parts = {"tree": self.tree, "groups": self.groups}
        return found | {name: part.describe() for name, part in parts.items() if part is not None}

    def arrays(self, base: Base) -> dict[str, NDArray[Any]]:
        found = {} if self.net is base else weights(self.net, _PREFIX)
        for each in self.specialists:
            found |= each.arrays()
        return found

    @classmethod
    def load(cls, arrays: Mapping[str, NDArray[Any]], text: Mapping[str, Any], base: Base, **more: Any) -> Self:
        """Build from the arrays and the description in a model file; without weights of its own the net is the base.

        Parameters
        ----------
        arrays : mapping of str to ndarray
        text : mapping
        base : Base
        **more
            Further fields of the subclass.
        """
        net = base
        if own := under(arrays, _PREFIX):
            spec = StackSpec.parse(text["channels"], text["refiner"])
            net = filled(lambda: ConvStack(spec), own)
        if not isinstance(net, ConvStack):
            raise ValueError(f"no weights of the refine net {text['refiner']}")
        maps, scanned = FeatureMaps.of(net), base.high_channels
        return cls(
            net=net,
            labels=tuple(Label(**label) for label in text["labels"]),
            downsample=text["geometry"]["refine_downsample"],
            tree=SpecialistTree.load(arrays, text["tree"], maps) if "tree" in text else None,
            groups=SpecialistGroups.load(arrays, text["groups"], maps, scanned) if "groups" in text else None,
            **more,
        )


def net_of(refiner: Refiner) -> ConvStack:
    """The net of a built-in refiner.

    Raises
    ------
    ValueError
        If it is of another kind.
    """
    if not isinstance(refiner, NetRefiner):
        raise ValueError(f'expected a model with a built-in refine net, got a refiner of the kind "{refiner.kind}"')
    return refiner.net
