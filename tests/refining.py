"""Models with another refiner."""

from __future__ import annotations

from dataclasses import replace

from coarse2fine.model import Model
from coarse2fine.models.conv_stack import ConvStack
from coarse2fine.refiners.net import NetRefiner, net_of
from coarse2fine.refiners.protocol import Label
from coarse2fine.specialists.groups import SpecialistGroups
from coarse2fine.specialists.tree import SpecialistTree


def built_in(model: Model) -> NetRefiner:
    assert isinstance(model.refiner, NetRefiner)
    return model.refiner


def net(model: Model) -> ConvStack:
    return net_of(model.refiner)


def relabelled(model: Model, *labels: Label) -> Model:
    return replace(model, refiner=replace(built_in(model), labels=labels))


def with_specialists(model: Model, tree: SpecialistTree | None = None, groups: SpecialistGroups | None = None) -> Model:
    return replace(model, refiner=replace(built_in(model), tree=tree, groups=groups))
