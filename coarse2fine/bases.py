"""Registry of bases by the prefix of their text in model files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coarse2fine.models.backbone import Backbone, BackboneSpec
from coarse2fine.models.base import Base
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.pooled import PREFIX as POOLED
from coarse2fine.models.pooled import PooledSpec, PooledStack
from coarse2fine.models.timm_text import PREFIX
from coarse2fine.plugins import Registry

Parse = Callable[[int, str], Any]
Build = Callable[[Any], Base]

TIMM = PREFIX.rstrip(":")
_BASES: Registry[tuple[Parse, Build]] = Registry("coarse2fine.bases")


def register_base(prefix: str, parse: Parse, build: Build) -> None:
    """Register another kind of base, the net that scans.

    Parameters
    ----------
    prefix : str
        Prefix of its text, ``str(base.spec)``, before a colon: a Python identifier.
    parse : callable
        Takes the channels of the input image (int) and the text; returns a `coarse2fine.models.base.BaseSpec`, or
        raises a ValueError if the text does not describe one. Model files are untrusted: the text may not be executed.
    build : callable
        Takes that; returns a `coarse2fine.models.base.Base` whose weights are filled in later.

    Notes
    -----
    A package that its user does not import registers through an entry point of the group ``coarse2fine.bases``: the
    entry point's name is the prefix, its value a module that calls this function.

    Raises
    ------
    ValueError
        If the prefix is no identifier.
    TypeError
        If one of the two cannot be called.
    """
    if not (callable(parse) and callable(build)):
        raise TypeError(f"expected two functions, parse(channels, text) and build(spec), got {parse!r} and {build!r}")
    if not prefix.isidentifier():
        raise ValueError(f"expected an identifier before the colon of a base's text, got {prefix!r}")
    _BASES.register(prefix, (parse, build))


register_base(TIMM, BackboneSpec.parse, Backbone)
register_base(POOLED, PooledSpec.parse, PooledStack)


def prefix_of(text: str) -> str | None:
    """The prefix of a base's text; None if the base is a built-in net."""
    prefix, colon, _ = text.partition(":")
    return prefix if colon and prefix.isidentifier() else None


def unfitted(channels: int, text: str) -> Callable[[], Base]:
    """A function that makes the base that a text describes: a registered kind, or a built-in net.

    Raises
    ------
    ValueError
        If the text describes no base.
    """
    if (prefix := prefix_of(text)) is None:
        stack = StackSpec.parse(channels, text)
        return lambda: ConvStack(stack)
    found = _BASES.find(prefix)
    if found is None:
        raise ValueError(f"no base of the kind {prefix:.40} is registered here; install the package that has it")
    parse, build = found
    spec = parse(channels, text)
    return lambda: build(spec)
