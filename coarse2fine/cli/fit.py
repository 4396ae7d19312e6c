"""``coarse2fine fit``."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from coarse2fine.cli.experts import add_expert_options, by_output, expert_from, watch_from
from coarse2fine.cli.options import add_common, add_reading, check_writable
from coarse2fine.terminal import say, say_lines

SPECIALISTS = ("heads", "tree", "activity", "auto", "none")
"""Values of ``--specialists``."""


def add_fit(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("images", help="an image, a folder or a glob (in quotes)")
    parser.add_argument(
        "annotations",
        nargs="?",
        help="named as the images, or one file for all: a file, a folder or a glob (in quotes); by default those "
        "beside the images; none with --expert",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="model file to write, such as boards.c2f")
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="fitted model to go on from, with more scenes, in less time"
    )
    add_reading(parser)
    parser.add_argument(
        "--upright", action="store_true", help="objects have a fixed orientation: train without rotations"
    )
    parser.add_argument(
        "--object-size", type=float, help="side of an object in pixels, for annotations that are points"
    )
    parser.add_argument(
        "--areas",
        nargs="+",
        default=(),
        metavar="CLASS",
        help="classes to learn as areas, with outlines (default: those of polygons above 256 px)",
    )
    _add_nets(parser)
    parser.add_argument(
        "--cache",
        type=Path,
        help="folder from which training of specialists, and watching of an expert, resume after an interruption",
    )
    parser.add_argument(
        "--recall", type=float, default=0.97, help="share of the exhaustive pass's finds (default: 0.97)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=1000,
        help="most training steps, fewer if more do not help (default: 1000)",
    )
    add_expert_options(
        parser.add_argument_group("your own model, watched instead of annotations"), "--expert", several=True
    )
    parser.add_argument(
        "--watch", default="0.1", help='share of the tiles on which the expert is watched, or a time: "20min" (0.1)'
    )
    add_common(parser)
    parser.set_defaults(run=_fit)


def _add_nets(parser: argparse.ArgumentParser) -> None:
    """Options of the scan and of specialists."""
    parser.add_argument("--base", metavar="timm:NAME", help="network of the scan (default: a small built-in one)")
    parser.add_argument(
        "--base-weights", metavar="FILE", help='weights of --base, or "none" (default: those of timm\'s hub)'
    )
    parser.add_argument("--width", type=float, default=1.0, help="factor on the built-in base's channels (default: 1)")
    parser.add_argument("--search", action="store_true", help="try several scan resolutions, cell sizes and widths")
    parser.add_argument(
        "--minimise", choices=("macs", "seconds"), default="macs", help="cost to minimise (default: macs)"
    )
    parser.add_argument(
        "--specialists",
        choices=SPECIALISTS,
        default="auto",
        help="small nets for kinds of cells (default: auto, those that help significantly)",
    )
    parser.add_argument(
        "--depth", type=int, default=4, help="most steps down the tree of specialists, if each helps (default: 4)"
    )


def _fit(parsed: argparse.Namespace) -> None:
    from coarse2fine.fitting.fit import fit

    if not parsed.output.parent.is_dir():
        raise FileNotFoundError(f"the folder of {parsed.output} does not exist; make it first")
    if parsed.output.is_dir():
        raise IsADirectoryError(f"{parsed.output} is a folder, expected the model file to write, such as boards.c2f")
    check_writable(parsed.output.parent)
    model = fit(
        parsed.images,
        parsed.annotations,
        model=parsed.model,
        expert=by_output(parsed.expert, partial(expert_from, parsed)) if parsed.expert else None,
        watch=watch_from(parsed.watch),
        channels=parsed.channels,
        value_range=parsed.value_range,
        rotate=not parsed.upright,
        object_size=parsed.object_size,
        areas=parsed.areas,
        base=parsed.base,
        base_weights=parsed.base_weights,
        width=parsed.width,
        geometry="search" if parsed.search else None,
        minimise=parsed.minimise,
        specialists=None if parsed.specialists == "none" else parsed.specialists,
        depth=parsed.depth,
        cache=parsed.cache,
        recall=parsed.recall,
        steps=parsed.steps,
        seed=parsed.seed,
        name=parsed.output.stem,
        device=parsed.device,
        precision=parsed.precision,
        progress=not parsed.quiet,
    )
    path = model.save(parsed.output)
    say_lines(model)
    say(f"written {path}")
