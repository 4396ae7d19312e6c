"""``coarse2fine report | view | tiles | coco``: commands on stored results."""

from __future__ import annotations

import argparse
from pathlib import Path

from coarse2fine.cli.options import check_writable
from coarse2fine.terminal import say

_ZARR = ("zarr.json", ".zattrs", ".zgroup")


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("result", type=Path, help="folder of a result, or of a batch")
    parser.add_argument("--image", help="the image of a single result, if it was moved")
    parser.set_defaults(run=_report)


def add_view(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("result", metavar="RESULT or IMAGE", help="folder of a result, or an image to annotate")
    parser.add_argument("--image", help="the image of a result, if it was moved")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="classes to annotate an image with")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="file of an image's annotations (default: IMAGE's .geojson)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=int, default=0, help="port to listen at (default: any that is free)")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.set_defaults(run=_view)


def add_tiles(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("result", type=Path, help="folder of a result")
    parser.add_argument("-o", "--output", type=Path, required=True, help="HDF5 file to write, such as tiles.h5")
    parser.add_argument("-m", "--model", help="model whose refine net describes each tile (default: only coordinates)")
    parser.add_argument("--tile", type=int, default=256, help="side of a tile in full-resolution pixels (default: 256)")
    parser.add_argument("--image", help="the image, if it was moved")
    parser.set_defaults(run=_tiles)


def add_coco(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("result", type=Path, help="folder of a result, or of a batch")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write, such as finds.json")
    parser.set_defaults(run=_coco)


def _report(parsed: argparse.Namespace) -> None:
    from coarse2fine.report.batch_page import write_folder_report

    if parsed.result.is_dir():
        check_writable(parsed.result)
    say(f"written {write_folder_report(parsed.result, parsed.image)}")


def _view(parsed: argparse.Namespace) -> None:
    from coarse2fine.annotate.serve import serve_image
    from coarse2fine.report.viewer import serve

    where = {"host": parsed.host, "port": parsed.port, "open_browser": not parsed.no_browser}
    to_annotate = parsed.classes is not None or parsed.annotations is not None
    if not to_annotate and (parsed.image is not None or _is_result(parsed.result)):
        serve(parsed.result, image=parsed.image, **where)
    elif parsed.image is not None:
        raise ValueError("--image names the image of a result, which cannot be annotated: view IMAGE alone")
    else:
        serve_image(parsed.result, classes=parsed.classes or (), annotations=parsed.annotations, **where)


def _is_result(place: str) -> bool:
    """Whether a place is a folder, but no image that is a folder."""
    folder = Path(place)
    return folder.is_dir() and not any((folder / name).exists() for name in _ZARR)


def _tiles(parsed: argparse.Namespace) -> None:
    from coarse2fine.results.analysis import Analysis

    with Analysis.load(parsed.result, parsed.image) as analysis:
        say(f"written {analysis.to_h5(parsed.output, parsed.model, tile=parsed.tile)}")


def _coco(parsed: argparse.Namespace) -> None:
    from coarse2fine.results.coco import result_folders, write_results_coco

    say(f"written {write_results_coco(parsed.output, result_folders(parsed.result))}")
