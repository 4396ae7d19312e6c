"""``coarse2fine benchmark``: cost saved and finds missed on the user's scenes."""

from __future__ import annotations

import argparse
from pathlib import Path

from coarse2fine.cli.experts import add_expert_options, expert_from
from coarse2fine.terminal import say, say_lines

SCENES = "recall against multiply-adds, chunks and seconds on held-out scenes, compared with simple methods; audits"
GIGAPIXEL = "what analyses of huge scenes cost, made on disk, as they grow; with the exhaustive pass and simple methods"
EXPERTS = "your own model behind the scan: tiles, multiply-adds and seconds, forecast beside outcome"


def add_benchmark(parser: argparse.ArgumentParser) -> None:
    """Add the benchmarks that users run."""
    commands = parser.add_subparsers(required=True, metavar="NAME", dest="name")
    add_scenes(commands.add_parser("scenes", help=SCENES))
    add_gigapixel(commands.add_parser("gigapixel", help=GIGAPIXEL))
    _add_experts(commands.add_parser("experts", help=EXPERTS))


def add_scenes(scenes: argparse.ArgumentParser) -> None:
    """Add the arguments of the benchmark of scenes."""
    scenes.add_argument("--data", type=Path, help="folder of images and GeoJSON (default: synthetic scenes of digits)")
    scenes.add_argument(
        "--test", nargs="+", default=[], metavar="NAME", help="test scenes; models are fitted to all others"
    )
    scenes.add_argument(
        "--folds", type=int, default=4, help="without --test, folds in which each scene is held out once (default: 4)"
    )
    scenes.add_argument("--seeds", type=int, help="number of seeds (default: 5; 1 with --quick)")
    scenes.add_argument("--steps", type=int, help="optimisation steps of each net (default: 1000; 300 with --quick)")
    scenes.add_argument("--quick", action="store_true", help="one seed, one fold, few steps: under five minutes")
    scenes.add_argument("--model", metavar="FILE", help="test this model instead of fitting one")
    scenes.add_argument(
        "--models", type=Path, metavar="DIR", help="store fitted models here, and reuse those of an earlier run"
    )
    scenes.add_argument(
        "--composite", type=float, metavar="MPX", help="join each fold's test scenes into one of this many megapixels"
    )
    scenes.add_argument(
        "--density", type=float, metavar="SHARE", help="share of a composite covered by scenes; the rest is background"
    )
    add_output(scenes, "folder of the picture, and of composites during the run")
    scenes.set_defaults(run=_scenes)


def add_gigapixel(gigapixel: argparse.ArgumentParser) -> None:
    """Add the arguments of the benchmark of huge scenes."""
    sizes = gigapixel.add_mutually_exclusive_group()
    sizes.add_argument(
        "--sizes", type=float, nargs="+", metavar="GPX", help="sizes of the scenes in gigapixels (default: 0.25 1 4)"
    )
    sizes.add_argument("--large", action="store_true", help="16 gigapixels too: 25 GB of disk")
    sizes.add_argument("--quick", action="store_true", help="0.06 and 0.25 gigapixels: under five minutes")
    gigapixel.add_argument("--objects", type=float, default=312.0, help="digits in a gigapixel (default: 312)")
    gigapixel.add_argument(
        "--data", type=Path, help="folder of images and GeoJSON to make composites of; needs --model"
    )
    gigapixel.add_argument(
        "--density", type=float, default=0.03, metavar="SHARE", help="share of a composite that they cover (0.03)"
    )
    gigapixel.add_argument("--model", metavar="FILE", help="name or file of a fitted model (default: digits)")
    gigapixel.add_argument("--seeds", type=int, default=1, help="number of scenes of each size (default: 1)")
    add_output(gigapixel, "folder in which scenes are kept, 1.4 GB a gigapixel")
    gigapixel.set_defaults(run=_gigapixel)


def _add_experts(experts: argparse.ArgumentParser) -> None:
    """Add the arguments of the benchmark of a user's own expert."""
    experts.add_argument(
        "--data", type=Path, required=True, help="folder of at least two images; a quarter is for tests"
    )
    add_expert_options(experts.add_argument_group("your own model"), "--expert")
    experts.add_argument("--watch", type=float, default=0.1, help="share of the tiles on which it is watched (0.1)")
    experts.add_argument(
        "--seeds", type=int, default=3, help="number of seeds, each with other test images (default: 3)"
    )
    experts.add_argument("--steps", type=int, help="optimisation steps of the scan (default: those of fit)")
    add_output(experts, "folder in which the expert's answers are kept")
    experts.set_defaults(run=_experts)


def add_output(parser: argparse.ArgumentParser, folder: str) -> None:
    """Add the options for a benchmark's output."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="file of the figures (default: NAME.json in --out)")
    parser.add_argument("--out", type=Path, default=Path("bench"), metavar="DIR", help=f"{folder} (default: bench)")


def made_place(parsed: argparse.Namespace) -> Path:
    """Create the folders of figures and pictures before the long work; returns the file for figures."""
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
        raise ValueError("--density applies to a composite: give --composite too")
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


def _gigapixel(arguments: argparse.Namespace) -> None:
    from coarse2fine.bench.gigapixel import SIZES, HugeScenes, benchmark_gigapixel

    if arguments.data is not None and arguments.model is None:
        raise ValueError("name the model that finds what is annotated in --data: --model FILE")
    json = made_place(arguments)
    sizes = arguments.sizes or ((0.06, 0.25) if arguments.quick else (*SIZES, 16.0) if arguments.large else SIZES)
    scenes = HugeScenes(arguments.out, arguments.objects, arguments.data, arguments.density)
    report = benchmark_gigapixel(scenes, model=arguments.model or "digits", sizes=sizes, seeds=arguments.seeds)
    say_lines(report)
    say(f"written {report.save(json)}")


def _experts(arguments: argparse.Namespace) -> None:
    from coarse2fine.bench.expert_run import benchmark_own_expert

    if not arguments.expert:
        raise ValueError("name your model: --expert adapter:model, or package.module:function")
    json = made_place(arguments)
    report = benchmark_own_expert(
        expert_from(arguments, arguments.expert),
        arguments.data,
        seeds=arguments.seeds,
        watch=arguments.watch,
        steps=arguments.steps,
        cache=arguments.out / "answers",
    )
    say_lines(report)
    say(f"written {report.save(json)}")
