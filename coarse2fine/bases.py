"""Bases by the text that a model file holds of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coarse2fine.models.backbone import Backbone, BackboneSpec
from coarse2fine.models.base import Base
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.timm_text import PREFIX
from coarse2fine.plugins import Registry

Parse = Callable[[int, str], Any]
Build = Callable[[Any], Base]

TIMM = PREFIX.rstrip(":")
_BASES: Registry[tuple[Parse, Build]] = Registry("coarse2fine.bases")


def register_base(prefix: str, parse: Parse, build: Build) -> None:
    """Let models scan with bases of another kind.

    Parameters
    ----------
    prefix : str
        What the text of such a base, ``str(base.spec)``, begins with before a colon: a Python identifier.
    parse : callable
        From the channels of the input image (int) and the text to a `coarse2fine.models.base.BaseSpec`; raises a
        ValueError if the text does not describe one. Model files come from strangers: the text must not be executed.
    build : callable
        From that to a `coarse2fine.models.base.Base` with weights yet to be filled in.

    Notes
    -----
    A package registers without being imported through an entry point of the group ``coarse2fine.bases``: its name is
    the prefix, and its value a module that calls this function.

    Raises
    ------
    ValueError
        If the prefix is no identifier.
    """
    if not prefix.isidentifier():
        raise ValueError(f"expected an identifier before the colon of a base's text, got {prefix!r}")
    _BASES.register(prefix, (parse, build))


register_base(TIMM, BackboneSpec.parse, Backbone)


def prefix_of(text: str) -> str | None:
    """The prefix of a base's text; None if the base is a built-in net."""
    prefix, colon, _ = text.partition(":")
    return prefix if colon and prefix.isidentifier() else None


def unfitted(channels: int, text: str) -> Callable[[], Base]:
    """A function that makes the base that a text describes: one of a registered kind, or a built-in net.

    Raises
    ------
    ValueError
        If the text describes none.
    """
    if (prefix := prefix_of(text)) is None:
        stack = StackSpec.parse(channels, text)
        return lambda: ConvStack(stack)
    found = _BASES.find(prefix)
    if found is None:
        raise ValueError(f"no base of the kind {prefix:.40}: is registered here; install the package that has it")
    parse, build = found
    spec = parse(channels, text)
    return lambda: build(spec)
