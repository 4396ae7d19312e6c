"""``coarse2fine expert``, and the options of an expert."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from coarse2fine.terminal import say_lines

if TYPE_CHECKING:
    from coarse2fine.experts.expert import Expert

_Made = TypeVar("_Made")

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

    With `several` it may be given again, for alternatives and for further outputs.
    """
    if several:
        more = "again for a cheaper alternative, or as NAME=SPEC for each of several outputs"
        group.add_argument(name, metavar="SPEC", action="append", help=f"{_SPEC}; {more}")
    elif name:
        group.add_argument(name, metavar="SPEC", help=_SPEC)
    group.add_argument("--kind", choices=("boxes", "map", "classes", "vectors"), help="form of its answers")
    group.add_argument("--tile", type=int, default=512, help="side of its tiles in pixels (default: 512)")
    group.add_argument("--context", type=int, default=0, help="pixels read around each tile (default: 0)")
    group.add_argument("--expert-downsample", type=int, default=1, help="pixels of the image per pixel it sees (1)")
    group.add_argument("--expert-mpp", type=float, help="microns per pixel that it expects, instead of that")
    group.add_argument("--labels", nargs="+", help="names of its classes (default: its own)")
    group.add_argument("--confidence", type=float, default=0.5, help="least score of a find (default: 0.5)")
    group.add_argument(
        "--expert-option", action="append", default=[], metavar="NAME=VALUE", help="for the adapter or the function"
    )


def expert_from(parsed: argparse.Namespace, spec: str) -> Expert:
    """The expert of a command line: a text may end with options of its own, as a JSON object after a space."""
    from coarse2fine.experts.again import with_options
    from coarse2fine.experts.expert import expert

    shared = {
        "kind": parsed.kind,
        "tile": parsed.tile,
        "context": parsed.context,
        "downsample": parsed.expert_downsample,
        "mpp": parsed.expert_mpp,
        "labels": parsed.labels,
        "confidence": parsed.confidence,
    }
    text, own = with_options(spec)
    return expert(text, **(shared | dict(map(_pair, parsed.expert_option)) | own))


def by_output(specs: Sequence[str], make: Callable[[str], _Made]) -> list[_Made] | dict[str, list[_Made]]:
    """What is made of the texts of experts: a list, or if they are NAME=SPEC, lists by the names of their outputs.

    Raises
    ------
    ValueError
        If only some have a name.
    """
    # A colon ends the prefix of a text, so that an equals sign after it belongs to the text.
    pairs = [re.fullmatch(r"(?:(\w+)=)?(.*)", spec, re.DOTALL) for spec in specs]
    named = [(found[1] or "", make(found[2])) for found in pairs if found]
    if not all(name for name, _ in named):
        if any(name for name, _ in named):
            raise ValueError(f"name all outputs, such as --expert nuclei=SPEC, or none; got {', '.join(specs)}")
        return [each for _, each in named]
    return {name: [each for other, each in named if other == name] for name in dict.fromkeys(n for n, _ in named)}


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
