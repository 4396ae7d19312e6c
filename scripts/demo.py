"""Make a gigapixel scene of handwritten digits, analyse it, and compare: ``python scripts/demo.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from coarse2fine.demo.gigapixel import run


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"), help="folder of the scene and the results")
    parser.add_argument("--side", type=int, default=32768, help="side of the scene in pixels (default: 32768)")
    arguments = parser.parse_args()
    run(arguments.output, arguments.side)


if __name__ == "__main__":
    main()
