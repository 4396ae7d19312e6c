"""``coarse2fine analyze``: one image, or a batch."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from coarse2fine.cli.experts import by_output
from coarse2fine.cli.options import add_common, add_fields, add_opening, check_place, config_from
from coarse2fine.terminal import say, say_lines

if TYPE_CHECKING:
    from coarse2fine.batch.request import BatchRequest

_EPILOG = """\
A single image is analysed in this process, a batch by one process per core or by the workers of a Dask scheduler.
Finished images are skipped: after a crash or Ctrl-C the same command continues. In a batch each image has its own
folder in the output; batch.json and batch.csv list the outcomes; if an image failed, the exit status is 1.
"""


def add_analyze(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "input", nargs="+", help="images, folders, globs, addresses, or lists (.txt; .csv with path, mpp, model)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("-m", "--model", default="generic", help="a .c2f file or an embedded model (default: generic)")
    parser.add_argument(
        "--expert",
        action="append",
        metavar="SPEC",
        help="your own model that the model file runs, see `fit --help`; again for all that were given there",
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="folder of stored answers of --expert, such as that of `fit --cache`"
    )
    parser.add_argument("--overwrite", action="store_true", help="analyse finished images again")
    parser.add_argument("--no-report", action="store_true", help="do not write report.html")
    parser.add_argument("--dry-run", action="store_true", help="only estimate work, time and memory")
    add_opening(parser)
    parser.add_argument(
        "--mask", type=Path, help="area to analyse: GeoJSON or an image, or a folder of them, named as the images"
    )
    limits = parser.add_argument_group("limits, recall and threshold")
    add_fields(limits, "budget", "cells", "seconds", "recall", "confidence", "audit", "cap", "threshold")
    _add_batch(parser.add_argument_group("batches"))
    add_common(parser)
    add_fields(parser, "batch_size", short="-b")
    parser.set_defaults(run=analyze_command)


def _add_batch(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-n", "--workers", type=int, help="processes (default: one per core; 0: this process, one image after another)"
    )
    group.add_argument("--scheduler", metavar="ADDRESS", help="Dask scheduler to use, such as tcp://host:8786")
    group.add_argument("--shard", type=_shard, metavar="I/N", help="analyse only the I-th of N equal parts")
    group.add_argument("--split", action="store_true", help="refine each very large image by all workers together")
    group.add_argument("--time-limit", type=float, metavar="SECONDS", help="abort an image that takes longer")
    group.add_argument(
        "--on-error", choices=("skip", "fail"), default="skip", help="continue after a failure (default), or stop"
    )


def analyze_command(parsed: argparse.Namespace) -> int:
    """Run the command."""
    from coarse2fine.batch.estimate import estimate
    from coarse2fine.batch.inputs import find_items, is_one_image, with_masks
    from coarse2fine.batch.job import Opening
    from coarse2fine.batch.request import BatchRequest, Workers
    from coarse2fine.batch.run import run_batch

    config = config_from(parsed)
    workers = Workers(parsed.workers, parsed.scheduler, parsed.shard, parsed.split, parsed.time_limit)
    opening = Opening(parsed.mpp, parsed.channels, parsed.value_range)
    check_place(parsed.output)
    items, one = find_items(parsed.input), is_one_image(parsed.input)
    if parsed.mask is not None:
        items = with_masks(items, parsed.mask)
    request = BatchRequest(
        items,
        parsed.output,
        parsed.model,
        config,
        workers,
        opening,
        flat=one,
        report=not parsed.no_report,
        expert=by_output(parsed.expert, str) if parsed.expert else None,
        cache=parsed.cache,
    )
    if parsed.dry_run:
        found = estimate(request)
        say_lines(found)
        return 0 if found.ok else 1
    if one and workers == Workers():
        return _analyze_single(request, parsed)
    batch = run_batch(request, overwrite=parsed.overwrite, on_error=parsed.on_error, progress=not parsed.quiet)
    say_lines(batch)
    say(f"written {parsed.output}")
    return 0 if batch.ok else 1


def _analyze_single(request: BatchRequest, parsed: argparse.Namespace) -> int:
    from coarse2fine.batch.single import analyze_single

    analysis = analyze_single(request, overwrite=parsed.overwrite, progress=not parsed.quiet)
    if analysis is None:
        say(f"{parsed.output} holds this analysis already; do it again with --overwrite")
        return 0
    with analysis:
        say_lines(analysis)
    say(f"written {parsed.output}")
    return 0


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, such as 2/8, got {text!r}")
    return int(found[1]), int(found[2])
