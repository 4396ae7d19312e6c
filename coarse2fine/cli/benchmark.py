"""``coarse2fine benchmark``: what choosing where to look saves and misses on one's own scenes."""

from __future__ import annotations

import argparse
from pathlib import Path

from coarse2fine.terminal import say, say_lines

SCENES = "leave scenes out: recall against multiply-adds, chunks and seconds, beside the trivial rivals; audits"


def add_benchmark(parser: argparse.ArgumentParser) -> None:
    """Add the benchmarks that users run."""
    commands = parser.add_subparsers(required=True, metavar="NAME", dest="name")
    add_scenes(commands.add_parser("scenes", help=SCENES))


def add_scenes(scenes: argparse.ArgumentParser) -> None:
    """Add the arguments of the benchmark of scenes."""
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
    add_output(scenes, "folder of the picture, and of a composite while it is needed")
    scenes.set_defaults(run=_scenes)


def add_output(parser: argparse.ArgumentParser, folder: str) -> None:
    """Add where a benchmark writes."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the figures (default: NAME.json in --out)")
    parser.add_argument("--out", type=Path, default=Path("bench"), metavar="DIR", help=f"{folder} (default: bench)")


def made_place(parsed: argparse.Namespace) -> Path:
    """The file for figures, once its folder and that of pictures are there: long work must not end for want of them."""
    json: Path = parsed.json or parsed.out / f"{parsed.name}.json"
    for folder in (parsed.out, json.parent):
        folder.mkdir(parents=True, exist_ok=True)
    return json


def _scenes(arguments: argparse.Namespace) -> None:
    from coarse2fine.bench.composite import Composition
    from coarse2fine.bench.run import benchmark_scenes

    json = made_place(arguments)
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
    say_lines(report)
    say(f"written {', '.join(map(str, written))}")
