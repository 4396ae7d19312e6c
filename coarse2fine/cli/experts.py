"""``coarse2fine expert``, and the options of an expert."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from coarse2fine.terminal import say_lines

if TYPE_CHECKING:
    from coarse2fine.experts.expert import Expert

_SPEC = "adapter:model, such as ultralytics:best.pt or onnx:unet.onnx, or package.module:function"


def add_expert(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="run it on tiles of an image, alone and in batches")
    check.add_argument("spec", help=_SPEC)
    check.add_argument("image", nargs="?", help="an image (default: noise)")
    add_expert_options(check.add_argument_group("the expert"))
    check.set_defaults(run=_check)


def add_expert_options(group: argparse._ArgumentGroup, name: str = "", *, several: bool = False) -> None:
    """Add the options that describe an expert; `name` is that of its text, if it is an option too.

    With `several` it may be given again, for alternatives with the same options.
    """
    if several:
        group.add_argument(name, metavar="SPEC", action="append", help=f"{_SPEC}; again for a cheaper alternative")
    elif name:
        group.add_argument(name, metavar="SPEC", help=_SPEC)
    group.add_argument("--kind", choices=("boxes", "map", "classes", "vectors"), help="form of its answers")
    group.add_argument("--tile", type=int, default=512, help="side of its tiles in pixels (default: 512)")
    group.add_argument("--context", type=int, default=0, help="pixels read around each tile (default: 0)")
    group.add_argument("--expert-downsample", type=int, default=1, help="pixels of the image per pixel it sees (1)")
    group.add_argument("--labels", nargs="+", help="names of its classes (default: its own)")
    group.add_argument("--confidence", type=float, default=0.5, help="least score of a find (default: 0.5)")
    group.add_argument(
        "--expert-option", action="append", default=[], metavar="NAME=VALUE", help="for the adapter or the function"
    )


def expert_from(parsed: argparse.Namespace, spec: str) -> Expert:
    """The expert of a command line."""
    from coarse2fine.experts.expert import expert

    options = dict(map(_pair, parsed.expert_option))
    return expert(
        spec,
        kind=parsed.kind,
        tile=parsed.tile,
        context=parsed.context,
        downsample=parsed.expert_downsample,
        labels=parsed.labels,
        confidence=parsed.confidence,
        **options,
    )


def watch_from(text: str) -> float | str:
    """A share, or the text of a time."""
    try:
        return float(text)
    except ValueError:
        return text


def _pair(text: str) -> tuple[str, Any]:
    """Name and value of an option; numbers, lists and true or false as JSON, all else as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"expected NAME=VALUE, such as conf=0.25, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _check(parsed: argparse.Namespace) -> None:
    from coarse2fine.experts.check import check_expert

    say_lines(check_expert(expert_from(parsed, parsed.spec), parsed.image))
