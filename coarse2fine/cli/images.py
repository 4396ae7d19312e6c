"""``coarse2fine convert``, ``coarse2fine info`` and ``coarse2fine models``."""

from __future__ import annotations

import argparse
from pathlib import Path

from coarse2fine.cli.options import add_opening, check_place
from coarse2fine.terminal import say, say_lines


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("image", help="a file, a Zarr folder or an address")
    add_opening(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write, such as scene.zarr")
    parser.add_argument("--workers", type=int, help="threads (default: one per processor)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=_convert)


def add_info(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("image", help="an image file, a Zarr folder or an address; or a model's file or name")
    parser.set_defaults(run=_info)


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments: none."""
    parser.set_defaults(run=_models)


def _convert(parsed: argparse.Namespace) -> None:
    from coarse2fine.progress import Progress
    from coarse2fine.tiling.conversion.convert import convert
    from coarse2fine.tiling.opening import open_image

    check_place(parsed.output)
    try:
        with Progress(not parsed.quiet) as steps:
            tick = steps.task("converting")
            image = open_image(parsed.image, mpp=parsed.mpp, channels=parsed.channels, value_range=parsed.value_range)
            made = convert(image, parsed.output, workers=parsed.workers, progress=tick)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("; run the same command again to continue") from None
    height, width, channels = made.shape
    say(f"{width:,} x {height:,} px, {channels} channel(s), {made.levels} level(s), {made.seconds:,.1f} s")
    if made.resumed:
        say(f"{made.resumed:,} of {made.shards:,} shards were kept from an earlier run")
    for failure in made.failures:
        say(f"unreadable, written black: {failure}")
    say(f"written {made.path}")


def _info(parsed: argparse.Namespace) -> None:
    from coarse2fine.bundle import SUFFIX, embedded_names
    from coarse2fine.model import load_model
    from coarse2fine.tiling.opening import open_image

    embedded = parsed.image in embedded_names() and not Path(parsed.image).exists()
    if embedded or parsed.image.endswith(SUFFIX):
        say_lines(load_model(parsed.image))
        return
    with open_image(parsed.image) as image:
        say(f"{image.name}: {image.format}, {image.width:,} x {image.height:,} px, {image.channels} channel(s)")
        scale = "unknown" if image.mpp is None else f"{image.mpp[0]:g} x {image.mpp[1]:g} (y, x)"
        if image.mpp is None and image.pixel_size is not None:
            scale += f"; the file says {image.pixel_size.y:g} x {image.pixel_size.x:g} {image.pixel_size.unit}"
        say(f"microns per pixel: {scale}; values {image.value_range[0]:g}..{image.value_range[1]:g}")
        for level in image.levels:
            size = f"{level.width:,} x {level.height:,}"
            say(f"level {level.index}: {size} px, downsample {level.downsample_y:g}, chunk {level.chunk}")
        if image.geo is not None:
            say(f"world: {image.geo.crs or 'no EPSG code'}, {image.geo.unit or 'no unit'}, {image.geo.transform}")
        for note in image.notes:
            say(f"note: {note}")


def _models(_: argparse.Namespace) -> None:
    from coarse2fine.bundle import embedded_names
    from coarse2fine.model import load_model

    for name in embedded_names():
        say_lines(load_model(name))
