"""Make a gigapixel scene of handwritten digits, and one of letters; analyse both, and compare: ``scripts/demo.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from coarse2fine.demo.gigapixel import run
from coarse2fine.demo.letters import run_letters


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"), help="folder of the scene and the results")
    parser.add_argument("--side", type=int, default=32768, help="side of the scene in pixels (default: 32768)")
    arguments = parser.parse_args()
    run(arguments.output, arguments.side)
    run_letters(arguments.output / "letters")


if __name__ == "__main__":
    main()
