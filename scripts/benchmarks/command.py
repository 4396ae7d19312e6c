"""Measure cost saved and finds missed, reading speed and more: ``python scripts/benchmark.py NAME``.

scenes       the same as ``coarse2fine benchmark scenes``.
gigapixel    the same as ``coarse2fine benchmark gigapixel``.
io           reads per second, chunks decoded, memory and conversion, compared with the bare codec and other readers.
limit        an analysis beside the bare forward passes of its nets and the bare decoding of its chunks.
peers        the same network on the same image through other tools: seconds, memory, finds.
batch        folders of images: broken files, kills, workers that run out of memory, a full disk, scaling, overhead.
soak         2,000 images by one worker: its memory and open files, and their curve.
experts      real models behind the scan: tiles, multiply-adds and seconds, forecast beside outcome, other tools.
annotate     a simulated annotator: F1 against clicks for suggested places, random places and whole scenes.
sizes        objects of 8 to 400 px: recall by size of one model of several bands, beside models of one size.
specialists  specialists against controls: errors against multiply-adds, paired tests; novelty without labels.
detectors    the closer look beside detectors trained as long on the same scenes: average precision and cost.
glyphs       trees of forks against controls, on a thousand glyphs of many scripts, rendered from fonts.
sheets       letters of very many classes on large sheets, found and then named by the embedded `glyphs`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.annotate import run as annotating
from benchmarks.batches import run as batches
from benchmarks.limit import run as limits
from benchmarks.reading import run as reading
from benchmarks.sheets import run as sheets
from benchmarks.sizes import run as sizes
from benchmarks.soak import run as soaking
from coarse2fine.bench.sections import SectionReport
from coarse2fine.cli.benchmark import GIGAPIXEL, SCENES, add_gigapixel, add_output, add_scenes, made_place
from coarse2fine.terminal import say, say_lines

_Scale = TypeVar("_Scale", bound=Any)  # a dataclass

# ImageError, ModelError and AnnotationError are ValueErrors.
_EXPECTED = (OSError, ImportError, ValueError)


def main(given: Sequence[str] | None = None) -> int:
    """Run one benchmark, print its table and write its JSON; `given` are the arguments, by default the process's."""
    parser = argparse.ArgumentParser(
        prog="benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="NAME", dest="name")
    add_scenes(commands.add_parser("scenes", help=SCENES))
    add_gigapixel(commands.add_parser("gigapixel", help=GIGAPIXEL))
    io = commands.add_parser("io", help="reading and conversion")
    io.add_argument("--data", type=Path, help="folder of real slides, whose SVS files are read too")
    _add(io, _io, "smaller images, fewer rounds: under three minutes", "images are made, up to 6 GB (2 with --quick)")
    limit = commands.add_parser("limit", help="distance from the limit that nets and decoder set")
    _add(limit, _limit, "small scenes: a minute", "scenes are kept, 1.5 GB", seeded=False)
    peers = commands.add_parser("peers", help="the same network through other tools")
    _add(peers, _peers, "a small scene, one round: under five minutes", "scenes are kept, 0.1 GB", seeded=False)
    batch = commands.add_parser("batch", help="analysis of folders of images")
    _add(batch, _batch, "fewer images and kills: under five minutes", "images are made, up to 2 GB")
    _add_soak(commands.add_parser("soak", help="memory and open files of a worker that runs for long"))
    _add_experts(commands.add_parser("experts", help="experts behind the scan"))
    annotate = commands.add_parser("annotate", help="F1 against clicks of a simulated annotator")
    annotate.add_argument(
        "--data", type=Path, required=True, help="folder with a subfolder per data set: images and GeoJSON"
    )
    annotate.add_argument("--steps", type=int, help="steps of each net (default: 400; 40 with --quick)")
    _add(annotate, _annotate, "one seed, small scenes, few steps", "F1 is kept: a second run goes on", seeded=False)
    _add_sizes(commands.add_parser("sizes", help="objects of many sizes"))
    _add_detectors(commands.add_parser("detectors", help="the closer look beside standard detectors"))
    each = commands.add_parser("specialists", help="specialists against controls")
    each.add_argument(
        "--data", type=Path, help="folder with a subfolder per data set: .npz, or images and GeoJSON (default: digits)"
    )
    each.add_argument("--seeds", type=int, help="number of seeds (default: 3; 1 with --quick)")
    each.add_argument("--steps", type=int, help="limit on steps of each net (default: 4000; 300 with --quick)")
    _add(
        each,
        _specialists,
        "one seed, few variants: under five minutes",
        "results are kept: a second run with the same data trains only missing nets",
        seeded=False,
    )
    _add_glyphs(commands.add_parser("glyphs", help="trees of forks against controls"))
    sheet = commands.add_parser("sheets", help="letters of 730 classes on large sheets")
    _add(sheet, _sheets, "one small sheet: a minute", "sheets are kept, 1 GB", seeded=False)
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


def _add(
    parser: argparse.ArgumentParser,
    make: Callable[[argparse.Namespace], SectionReport],
    quick: str,
    out: str,
    *,
    seeded: bool = True,
) -> None:
    """Add the options of all benchmarks for developers."""
    parser.add_argument("--quick", action="store_true", help=quick)
    if seeded:
        parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    add_output(parser, f"folder in which {out}")

    def run(arguments: argparse.Namespace) -> None:
        json = made_place(arguments)
        report = make(arguments)
        say_lines(report)
        say(f"written {report.save(json)}")

    parser.set_defaults(run=run)


def _scale(given: argparse.Namespace, full: _Scale, quick: _Scale, *options: str) -> _Scale:
    """The size of a benchmark, with the values of options of these names if they are given."""
    chosen = {name: getattr(given, name) for name in options if getattr(given, name) is not None}
    return replace(quick if given.quick else full, **chosen)


def _io(given: argparse.Namespace) -> SectionReport:
    scale = reading.QUICK if given.quick else reading.FULL
    return reading.benchmark_io(given.out, data=given.data, scale=scale, seed=given.seed)


def _limit(given: argparse.Namespace) -> SectionReport:
    return limits.benchmark_limit(given.out, scale=limits.QUICK if given.quick else limits.FULL)


def _peers(given: argparse.Namespace) -> SectionReport:
    from benchmarks.peers import run as peers  # noqa: PLC0415 (slow)

    return peers.benchmark_peers(given.out, scale=peers.QUICK if given.quick else peers.FULL)


def _batch(given: argparse.Namespace) -> SectionReport:
    return batches.benchmark_batch(given.out, scale=batches.QUICK if given.quick else batches.FULL, seed=given.seed)


def _add_experts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder with mars and weights (default: what needs them is left out)")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: 3; 1 with --quick)")
    parser.add_argument("--pairs", nargs="+", metavar="SCENE/EXPERT", help="only these pairs (default: all)")
    parser.add_argument("--middle", action="store_true", help="scenes of up to 67 Mpx, three pairs: hours, not days")
    _add(
        parser,
        _experts,
        "small scenes, three pairs: under five minutes",
        "scenes, weights and answers are kept",
        seeded=False,
    )


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, help="number of seeds (default: 3; 1 with --quick)")
    parser.add_argument("--steps", type=int, help="steps of each net (default: 400; 60 with --quick)")
    _add(parser, _sizes, "one seed, few steps", "results are kept: a second run goes on", seeded=False)


def _add_soak(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, help="number of images (default: 2000; 60 with --quick)")
    _add(parser, _soak, "60 images: a minute", "images are made, and the curve is drawn", seeded=False)


def _soak(given: argparse.Namespace) -> SectionReport:
    return soaking.benchmark_soak(given.out, scale=_scale(given, soaking.FULL, soaking.QUICK, "images"))


def _experts(given: argparse.Namespace) -> SectionReport:
    from benchmarks.experts import run as experts  # noqa: PLC0415 (needs an extra)

    scale = _scale(given, experts.MIDDLE if given.middle else experts.FULL, experts.QUICK, "seeds")
    scale = replace(scale, pairs=tuple(given.pairs or scale.pairs))
    return experts.benchmark_experts(given.out, data=given.data, scale=scale)


def _annotate(given: argparse.Namespace) -> SectionReport:
    scale = _scale(given, annotating.FULL, annotating.QUICK, "steps")
    return annotating.benchmark_annotate(given.out, data=given.data, scale=scale)


def _sizes(given: argparse.Namespace) -> SectionReport:
    scale = _scale(given, sizes.FULL, sizes.QUICK, "seeds", "steps")
    return sizes.benchmark_sizes(given.out, scale=scale)


def _specialists(given: argparse.Namespace) -> SectionReport:
    from benchmarks.specialists import run as specialists  # noqa: PLC0415 (needs an extra)

    scale = _scale(given, specialists.FULL, specialists.QUICK, "seeds", "steps")
    return specialists.benchmark_specialists(given.out, data=given.data, scale=scale)


def _add_detectors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder of images with GeoJSON beside them")
    parser.add_argument("--test", nargs="+", required=True, metavar="NAME", help="scenes to test on, not to fit on")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: 3; 1 with --quick)")
    parser.add_argument("--steps", type=int, help="limit on steps of each of our nets (default: 1000; 60 with --quick)")
    parser.add_argument("--weights", type=Path, help="weights of timm's mobilenetv2_100, for one more detector")
    _add(
        parser,
        _detectors,
        "one seed, few steps",
        "figures of each seed and net are kept: a second run goes on",
        seeded=False,
    )


def _detectors(given: argparse.Namespace) -> SectionReport:
    from benchmarks.detectors import run as detectors  # noqa: PLC0415 (needs an extra)

    scale = _scale(given, detectors.FULL, detectors.QUICK, "seeds", "steps")
    return detectors.benchmark_detectors(
        given.out, data=given.data, test=given.test, weights=given.weights, scale=scale
    )


def _sheets(given: argparse.Namespace) -> SectionReport:
    return sheets.benchmark_sheets(given.out, scale=_scale(given, sheets.FULL, sheets.QUICK))


def _add_glyphs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder of fonts (default: the system's)")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: 3; 1 with --quick)")
    _add(
        parser,
        _glyphs,
        "few letters and samples, one seed: under five minutes",
        "results are kept, and a picture is drawn: a second run trains only missing seeds",
        seeded=False,
    )


def _glyphs(given: argparse.Namespace) -> SectionReport:
    from benchmarks.glyphs import run as glyphs  # noqa: PLC0415 (matplotlib is slow to import)

    scale = _scale(given, glyphs.FULL, glyphs.QUICK, "seeds")
    return glyphs.benchmark_glyphs(given.out, data=given.data, scale=scale)
