"""The command line, ``coarse2fine COMMAND``; ``coarse2fine --help`` lists the commands."""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections.abc import Sequence

from coarse2fine._version import __version__
from coarse2fine.cli.analyze import add_analyze
from coarse2fine.cli.benchmark import add_benchmark
from coarse2fine.cli.experts import add_expert
from coarse2fine.cli.fit import add_fit
from coarse2fine.cli.images import add_convert, add_info, add_models
from coarse2fine.cli.results import add_coco, add_report, add_tiles, add_view
from coarse2fine.terminal import printable, say
from coarse2fine.tiling.errors import MissingExtraError

# ImageError, ModelError and AnnotationError are ValueErrors.
_EXPECTED = (MissingExtraError, OSError, ValueError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.

    Returns
    -------
    int
        0; 1 if the input is at fault (with one line on standard error) or an image of a batch failed; 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        # Names of images are printed even if the terminal or pipe cannot encode their characters.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"coarse2fine: {printable(message)}\n"
    given = sys.argv[1:] if arguments is None else list(arguments)
    parsed = make_parser().parse_args(given)
    try:
        return parsed.run(parsed) or 0
    except _EXPECTED as error:
        say(f"coarse2fine: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        say(f"coarse2fine: interrupted{error}", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    """Parser of all commands; each stores its function as `run`."""
    parser = argparse.ArgumentParser(
        prog="coarse2fine", description="Scan a gigapixel image at low resolution; refine only the windows that matter."
    )
    parser.add_argument("--version", action="version", version=f"coarse2fine {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_analyze(commands.add_parser("analyze", help="analyse an image, or a folder of images"))
    add_report(commands.add_parser("report", help="write results as one HTML page"))
    add_view(commands.add_parser("view", help="show a result in the browser, down to full resolution"))
    add_tiles(
        commands.add_parser("tiles", help="write the tiles with refined windows as HDF5, for CLAM, TRIDENT and others")
    )
    add_coco(commands.add_parser("coco", help="write the finds of an image or a batch as one COCO JSON file"))
    add_fit(commands.add_parser("fit", aliases=["train"], help="fit a model to annotated scenes"))
    add_expert(commands.add_parser("expert", help="try your own model on tiles of an image: answers, seconds, memory"))
    add_convert(commands.add_parser("convert", help="convert an image to an OME-Zarr pyramid"))
    add_info(commands.add_parser("info", help="show size, levels and microns per pixel of an image, or a model"))
    add_models(commands.add_parser("models", help="list the embedded models"))
    add_benchmark(commands.add_parser("benchmark", help="measure cost saved and finds missed on your own scenes"))
    doctor = commands.add_parser(
        "doctor", help="show versions, devices and codecs for a bug report, and run a self-test"
    )
    doctor.set_defaults(run=_doctor)
    return parser


def _doctor(_: argparse.Namespace) -> int:
    from coarse2fine.cli.doctor import doctor_command

    return doctor_command()


if __name__ == "__main__":
    sys.exit(main())
