"""The command line: ``coarse2fine COMMAND``, of which ``coarse2fine --help`` lists the commands."""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from coarse2fine._version import __version__
from coarse2fine.annotations import AnnotationError
from coarse2fine.cli_analyze import add_analyze
from coarse2fine.cli_common import add_common, add_opening, add_reading, check_place, check_writable
from coarse2fine.cli_doctor import add_doctor
from coarse2fine.cli_show import add_coco, add_report, add_tiles, add_view
from coarse2fine.fit import fit
from coarse2fine.model import load_model
from coarse2fine.models.bundle import ModelError, embedded_names
from coarse2fine.progress import Progress
from coarse2fine.specialists.fitting import MODES
from coarse2fine.terminal import printable, say, say_lines
from coarse2fine.tiling.convert import convert
from coarse2fine.tiling.errors import ImageError, MissingExtraError
from coarse2fine.tiling.opening import open_image

_EXPECTED = (ImageError, ModelError, AnnotationError, MissingExtraError, OSError, ValueError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        0, 1 where the input is at fault (one line on standard error says how) or an image of a batch failed, 130 after
        Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        # Names of images are printed, also where a terminal or a pipe has no such characters.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"coarse2fine: {printable(message)}\n"
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["benchmark"]:
        # Benchmarks load much that nothing else needs, some of it in extras.
        from coarse2fine.bench.command import main as benchmark  # noqa: PLC0415

        return benchmark(given[1:])
    parsed = _parser().parse_args(given)
    try:
        return parsed.run(parsed) or 0
    except _EXPECTED as error:
        say(f"coarse2fine: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        say(f"coarse2fine: interrupted{error}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coarse2fine", description="Look at a gigapixel image cheaply everywhere, closely only where it matters."
    )
    parser.add_argument("--version", action="version", version=f"coarse2fine {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_analyze(commands.add_parser("analyze", help="analyse an image, or a folder of them"))
    add_report(commands.add_parser("report", help="write results as one HTML page"))
    add_view(commands.add_parser("view", help="show a result in the browser, down to full resolution"))
    add_tiles(commands.add_parser("tiles", help="write the interesting tiles as HDF5, for CLAM, TRIDENT and others"))
    add_coco(commands.add_parser("coco", help="write what was found as one COCO JSON file, of a batch too"))
    _add_fit(commands.add_parser("fit", aliases=["train"], help="fit a model to annotated scenes"))
    _add_convert(commands.add_parser("convert", help="convert an image to an OME-Zarr pyramid"))
    info = commands.add_parser("info", help="what an image file holds")
    info.add_argument("image", help="a file, a Zarr folder or an address")
    info.set_defaults(run=_info)
    models = commands.add_parser("models", help="the models that come with the package")
    models.set_defaults(run=_models)
    commands.add_parser("benchmark", add_help=False, help="measure what is saved and missed, reading, batches and more")
    add_doctor(commands.add_parser("doctor", help="versions, devices, codecs and a self-test: what a bug report needs"))
    return parser


def _add_fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", help="an image, a folder or a glob (in quotes)")
    parser.add_argument(
        "annotations", help="of the same names, or one file for all: a file, a folder or a glob (in quotes)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="model file to write, such as boards.c2f")
    add_reading(parser)
    parser.add_argument("--upright", action="store_true", help="objects have a right way up: do not turn them")
    parser.add_argument(
        "--object-size", type=float, help="side of an object in pixels, for annotations that are points"
    )
    parser.add_argument("--base", metavar="timm:NAME", help="network that scans (default: a small built-in one)")
    parser.add_argument("--base-weights", metavar="FILE", help='its weights, or "none" (default: those of timm\'s hub)')
    parser.add_argument("--width", type=float, default=1.0, help="factor on the built-in base's channels (default: 1)")
    parser.add_argument("--search", action="store_true", help="try several scan resolutions, cell sizes and widths")
    parser.add_argument("--minimise", choices=("macs", "seconds"), default="macs", help="what is cheap (default: macs)")
    parser.add_argument(
        "--specialists",
        choices=(*MODES, "none"),
        default="auto",
        help="small nets for kinds of cells (default: auto, those that surely help)",
    )
    parser.add_argument("--cache", type=Path, help="folder in which specialists go on after an interruption")
    parser.add_argument("--recall", type=float, default=0.97, help="of the exhaustive pass's finds (default: 0.97)")
    parser.add_argument("--steps", type=int, default=1000, help="optimisation steps of each net (default: 1000)")
    add_common(parser)
    parser.set_defaults(run=_fit)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", help="a file, a Zarr folder or an address")
    add_opening(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write, such as scene.zarr")
    parser.add_argument("--workers", type=int, help="threads (default: one a processor)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=_convert)


def _fit(parsed: argparse.Namespace) -> None:
    if not parsed.output.parent.is_dir():
        raise FileNotFoundError(f"the folder of {parsed.output} does not exist; make it first")
    if parsed.output.is_dir():
        raise IsADirectoryError(f"{parsed.output} is a folder, expected the model file to write, such as boards.c2f")
    check_writable(parsed.output.parent)
    model = fit(
        parsed.images,
        parsed.annotations,
        channels=parsed.channels,
        value_range=parsed.value_range,
        rotate=not parsed.upright,
        object_size=parsed.object_size,
        base=parsed.base,
        base_weights=parsed.base_weights,
        width=parsed.width,
        geometry="search" if parsed.search else None,
        minimise=parsed.minimise,
        specialists=None if parsed.specialists == "none" else parsed.specialists,
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


def _convert(parsed: argparse.Namespace) -> None:
    check_place(parsed.output)
    try:
        with Progress(not parsed.quiet) as steps:
            tick = steps.task("converting")
            image = open_image(parsed.image, mpp=parsed.mpp, channels=parsed.channels, value_range=parsed.value_range)
            made = convert(image, parsed.output, workers=parsed.workers, progress=tick)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("; run the same command again to go on from here") from None
    height, width, channels = made.shape
    say(f"{width:,} x {height:,} px, {channels} channel(s), {made.levels} level(s), {made.seconds:,.1f} s")
    if made.resumed:
        say(f"{made.resumed:,} of {made.shards:,} shards were there already")
    for failure in made.failures:
        say(f"black: {failure}")
    say(f"written {made.path}")


def _info(parsed: argparse.Namespace) -> None:
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
    for name in embedded_names():
        say_lines(load_model(name))


if __name__ == "__main__":
    sys.exit(main())
