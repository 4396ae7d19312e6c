"""Measure what coarse to fine saves and misses, and how fast it reads: ``coarse2fine benchmark NAME``.

scenes   leave scenes out: recall against multiply-adds, chunks and seconds, beside the trivial rivals; audits.
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

from coarse2fine import AnnotationError, ImageError, ModelError
from coarse2fine.bench.composite import Composition
from coarse2fine.bench.run import benchmark_scenes
from coarse2fine.terminal import say

_EXPECTED = (AnnotationError, ImageError, ModelError, OSError, ImportError, ValueError)


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
    _add_scenes(commands.add_parser("scenes", help="leave scenes out"))
    _add_io(commands.add_parser("io", help="reading and conversion"))
    _add_export(commands.add_parser("export", help="very many objects"))
    _add_batch(commands.add_parser("batch", help="folders of images"))
    _add_specialists(commands.add_parser("specialists", help="specialists and their controls"))
    arguments = parser.parse_args(given)
    json = arguments.json or arguments.out / f"{arguments.name}.json"
    try:
        # Long work must not end at a folder that cannot be written.
        for folder in (arguments.out, json.parent):
            folder.mkdir(parents=True, exist_ok=True)
        written = arguments.run(arguments, json)
    except _EXPECTED as error:
        say(f"benchmark: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmark: interrupted", file=sys.stderr)
        return 130
    print(f"written {', '.join(map(str, written))}")
    return 0


def _add_scenes(scenes: argparse.ArgumentParser) -> None:
    scenes.add_argument("--data", type=Path, help="folder of images and GeoJSON (default: synthetic scenes of digits)")
    scenes.add_argument("--test", nargs="+", default=[], metavar="NAME", help="test scenes; all others are fitted on")
    scenes.add_argument("--folds", type=int, default=4, help="else every scene is left out once (default: 4)")
    scenes.add_argument("--seeds", type=int, help="number of seeds (default: 5; 1 with --quick)")
    scenes.add_argument("--steps", type=int, help="optimisation steps of each net (default: 1000; 300 with --quick)")
    scenes.add_argument("--quick", action="store_true", help="one seed, one fold, few steps: under five minutes")
    scenes.add_argument("--model", metavar="FILE", help="test this model; fit none")
    scenes.add_argument(
        "--models", type=Path, metavar="DIR", help="keep fitted models, and use those of an earlier run"
    )
    scenes.add_argument(
        "--composite", type=float, metavar="MPX", help="make one scene of so many megapixels of a fold's"
    )
    scenes.add_argument(
        "--density", type=float, metavar="SHARE", help="share of a composite that is scenes; the rest is empty ground"
    )
    _add_output(scenes, "folder of the picture, and of a composite while it is needed")
    scenes.set_defaults(run=_scenes)


def _add_io(io: argparse.ArgumentParser) -> None:
    io.add_argument("--data", type=Path, help="folder of real slides; the SVS files in it are read too")
    io.add_argument("--quick", action="store_true", help="smaller images, fewer rounds: under three minutes")
    io.add_argument("--seed", type=int, default=0, help="of pixels and positions (default: 0)")
    _add_output(io, "folder in which images are made and removed again, up to 6 GB (2 GB with --quick)")
    io.set_defaults(run=_io)


def _add_batch(batch: argparse.ArgumentParser) -> None:
    batch.add_argument("--quick", action="store_true", help="fewer images and kills: under five minutes")
    batch.add_argument("--seed", type=int, default=0, help="of the kills (default: 0)")
    _add_output(batch, "folder in which images are made and removed again, up to 2 GB")
    batch.set_defaults(run=_batch)


def _add_specialists(specialists: argparse.ArgumentParser) -> None:
    specialists.add_argument(
        "--data", type=Path, help="folder with one for each data set: .npz, or images and GeoJSON (default: digits)"
    )
    specialists.add_argument("--quick", action="store_true", help="one seed, few variants: under five minutes")
    specialists.add_argument("--seeds", type=int, help="number of seeds (default: 3; 1 with --quick)")
    specialists.add_argument("--steps", type=int, help="most steps of each net (default: 4000; 300 with --quick)")
    _add_output(specialists, "folder of the picture and of all outcomes, which a second run goes on from")
    specialists.set_defaults(run=_specialists)


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("--quick", action="store_true", help="up to a hundred thousand: under a minute")
    export.add_argument("--seed", type=int, default=0, help="of the objects (default: 0)")
    _add_output(export, "folder in which files are made and removed again, up to 1 GB")
    export.set_defaults(run=_export)


def _add_output(parser: argparse.ArgumentParser, folder: str) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the figures (default: NAME.json in --out)")
    parser.add_argument("--out", type=Path, default=Path("bench"), metavar="DIR", help=f"{folder} (default: bench)")


def _scenes(arguments: argparse.Namespace, json: Path) -> list[Path]:
    seeds, steps = (1, 300) if arguments.quick else (5, 1000)
    if arguments.composite is None and arguments.density is not None:
        raise ValueError("--density is of a composite: give --composite too")
    density = 1.0 if arguments.density is None else arguments.density
    report = benchmark_scenes(
        arguments.data,
        test=arguments.test,
        folds=arguments.folds,
        seeds=seeds if arguments.seeds is None else arguments.seeds,
        steps=steps if arguments.steps is None else arguments.steps,
        quick=arguments.quick,
        model=arguments.model,
        composite=None if arguments.composite is None else Composition(arguments.composite, density),
        folder=arguments.out,
        models=arguments.models,
    )
    written = report.save(arguments.out, json)
    print(report)
    return written


def _io(arguments: argparse.Namespace, json: Path) -> list[Path]:
    scale = QUICK if arguments.quick else FULL
    return _told(benchmark_io(arguments.out, data=arguments.data, scale=scale, seed=arguments.seed), json)


def _export(arguments: argparse.Namespace, json: Path) -> list[Path]:
    scale = QUICK_EXPORT if arguments.quick else FULL_EXPORT
    return _told(benchmark_export(arguments.out, scale=scale, seed=arguments.seed), json)


def _batch(arguments: argparse.Namespace, json: Path) -> list[Path]:
    scale = QUICK_BATCH if arguments.quick else FULL_BATCH
    return _told(benchmark_batch(arguments.out, scale=scale, seed=arguments.seed), json)


def _told(report: IoReport, json: Path) -> list[Path]:
    """Save and print a report without a picture; the files written."""
    written = report.save(json)
    print(report)
    return written


def _specialists(arguments: argparse.Namespace, json: Path) -> list[Path]:
    scale = QUICK_SPECIALISTS if arguments.quick else FULL_SPECIALISTS
    given = {name: getattr(arguments, name) for name in ("seeds", "steps") if getattr(arguments, name) is not None}
    report = benchmark_specialists(arguments.out, data=arguments.data, scale=replace(scale, **given))
    written = report.save(arguments.out, json)
    print(report)
    return written
