"""Measure what coarse to fine saves and misses: ``python scripts/benchmark.py NAME``.

scenes   leave scenes out: recall, precision and multiply-adds at several budgets, beside the trivial rivals.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from coarse2fine import AnnotationError, ImageError, ModelError
from coarse2fine.benchmark import benchmark_scenes

_EXPECTED = (AnnotationError, ImageError, ModelError, OSError, ImportError, ValueError)


def main() -> int:
    """Run one benchmark: print its table, write its JSON and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="NAME")
    scenes = commands.add_parser("scenes", help="leave scenes out")
    scenes.add_argument("--data", type=Path, help="folder of images and GeoJSON (default: synthetic scenes of digits)")
    scenes.add_argument("--test", nargs="+", default=[], metavar="NAME", help="test scenes; all others are fitted on")
    scenes.add_argument("--folds", type=int, default=4, help="else every scene is left out once (default: 4)")
    scenes.add_argument("--seeds", type=int, help="number of seeds (default: 5; 1 with --quick)")
    scenes.add_argument("--steps", type=int, help="optimisation steps of each net (default: 1000; 300 with --quick)")
    scenes.add_argument("--quick", action="store_true", help="one seed, one fold, few steps: under five minutes")
    scenes.add_argument("--model", metavar="FILE", help="test this model; fit none")
    scenes.add_argument("--json", type=Path, metavar="FILE", help="for the figures (default: scenes.json in --out)")
    scenes.add_argument(
        "--out", type=Path, default=Path("bench"), metavar="DIR", help="folder of the picture (default: bench)"
    )
    arguments = parser.parse_args()
    seeds, steps = (1, 300) if arguments.quick else (5, 1000)
    json = arguments.json or arguments.out / "scenes.json"
    try:
        # Long work must not end at a folder that cannot be written.
        for folder in (arguments.out, json.parent):
            folder.mkdir(parents=True, exist_ok=True)
        report = benchmark_scenes(
            arguments.data,
            test=arguments.test,
            folds=arguments.folds,
            seeds=seeds if arguments.seeds is None else arguments.seeds,
            steps=steps if arguments.steps is None else arguments.steps,
            quick=arguments.quick,
            model=arguments.model,
        )
        written = report.save(arguments.out, json)
    except _EXPECTED as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmark: interrupted", file=sys.stderr)
        return 130
    print(report)
    print(f"written {', '.join(map(str, written))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
