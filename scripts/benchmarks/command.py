"""Measure what coarse to fine saves and misses, and how fast it reads: ``python scripts/benchmark.py NAME``.

scenes   what users run too: ``coarse2fine benchmark scenes``.
io       reads per second, chunks decoded, memory and conversion, beside the bare codec and other readers.
export   merging, writing and showing up to a million objects: seconds, bytes, and how they grow.
batch    folders of images: broken files, kills, workers that run out of memory, a full disk, scaling, overhead.
specialists  all kinds of them beside honest controls: errors against multiply-adds, paired tests; what they cost.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.batches.run import FULL as FULL_BATCH
from benchmarks.batches.run import QUICK as QUICK_BATCH
from benchmarks.batches.run import benchmark_batch
from benchmarks.exporting import FULL as FULL_EXPORT
from benchmarks.exporting import QUICK as QUICK_EXPORT
from benchmarks.exporting import benchmark_export
from benchmarks.reading.run import FULL, QUICK, benchmark_io
from benchmarks.report import IoReport
from benchmarks.specialists.run import FULL as FULL_SPECIALISTS
from benchmarks.specialists.run import QUICK as QUICK_SPECIALISTS
from benchmarks.specialists.run import benchmark_specialists
from coarse2fine.cli.benchmark import SCENES, add_output, add_scenes, made_place
from coarse2fine.terminal import say, say_lines

# ImageError, ModelError and AnnotationError are ValueErrors.
_EXPECTED = (OSError, ImportError, ValueError)


def main(given: Sequence[str] | None = None) -> int:
    """Run one benchmark: print its table, write its JSON and its picture.

    Parameters
    ----------
    given : sequence of str, optional
        By default those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="NAME", dest="name")
    add_scenes(commands.add_parser("scenes", help=SCENES))
    _add_io(commands.add_parser("io", help="reading and conversion"))
    _add_export(commands.add_parser("export", help="very many objects"))
    _add_batch(commands.add_parser("batch", help="folders of images"))
    _add_specialists(commands.add_parser("specialists", help="specialists and their controls"))
    arguments = parser.parse_args(given)
    try:
        arguments.run(arguments)
    except _EXPECTED as error:
        say(f"benchmark: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("benchmark: interrupted", file=sys.stderr)
        return 130
    return 0


def _add_io(io: argparse.ArgumentParser) -> None:
    io.add_argument("--data", type=Path, help="folder of real slides; the SVS files in it are read too")
    io.add_argument("--quick", action="store_true", help="smaller images, fewer rounds: under three minutes")
    io.add_argument("--seed", type=int, default=0, help="of pixels and positions (default: 0)")
    add_output(io, "folder in which images are made and removed again, up to 6 GB (2 GB with --quick)")
    io.set_defaults(run=_io)


def _add_batch(batch: argparse.ArgumentParser) -> None:
    batch.add_argument("--quick", action="store_true", help="fewer images and kills: under five minutes")
    batch.add_argument("--seed", type=int, default=0, help="of the kills (default: 0)")
    add_output(batch, "folder in which images are made and removed again, up to 2 GB")
    batch.set_defaults(run=_batch)


def _add_specialists(specialists: argparse.ArgumentParser) -> None:
    specialists.add_argument(
        "--data", type=Path, help="folder with one for each data set: .npz, or images and GeoJSON (default: digits)"
    )
    specialists.add_argument("--quick", action="store_true", help="one seed, few variants: under five minutes")
    specialists.add_argument("--seeds", type=int, help="number of seeds (default: 3; 1 with --quick)")
    specialists.add_argument("--steps", type=int, help="most steps of each net (default: 4000; 300 with --quick)")
    add_output(specialists, "folder of the picture and of all outcomes, which a second run goes on from")
    specialists.set_defaults(run=_specialists)


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("--quick", action="store_true", help="up to a hundred thousand: under a minute")
    export.add_argument("--seed", type=int, default=0, help="of the objects (default: 0)")
    add_output(export, "folder in which files are made and removed again, up to 1 GB")
    export.set_defaults(run=_export)


def _io(arguments: argparse.Namespace) -> None:
    json = made_place(arguments)
    scale = QUICK if arguments.quick else FULL
    _finish(benchmark_io(arguments.out, data=arguments.data, scale=scale, seed=arguments.seed), json)


def _export(arguments: argparse.Namespace) -> None:
    json = made_place(arguments)
    scale = QUICK_EXPORT if arguments.quick else FULL_EXPORT
    _finish(benchmark_export(arguments.out, scale=scale, seed=arguments.seed), json)


def _batch(arguments: argparse.Namespace) -> None:
    json = made_place(arguments)
    scale = QUICK_BATCH if arguments.quick else FULL_BATCH
    _finish(benchmark_batch(arguments.out, scale=scale, seed=arguments.seed), json)


def _finish(report: IoReport, json: Path) -> None:
    """Save and print a report without a picture."""
    say_lines(report)
    _written(report.save(json))


def _specialists(arguments: argparse.Namespace) -> None:
    json = made_place(arguments)
    scale = QUICK_SPECIALISTS if arguments.quick else FULL_SPECIALISTS
    given = {name: getattr(arguments, name) for name in ("seeds", "steps") if getattr(arguments, name) is not None}
    report = benchmark_specialists(arguments.out, data=arguments.data, scale=replace(scale, **given))
    written = report.save(arguments.out, json)
    say_lines(report)
    _written(written)


def _written(paths: list[Path]) -> None:
    say(f"written {', '.join(map(str, paths))}")
