"""Measure what coarse to fine saves and misses, how fast it reads, and more: ``python scripts/benchmark.py NAME``.

The same as ``coarse2fine benchmark``, whose ``--help`` lists the names.
"""

from __future__ import annotations

import sys

from coarse2fine.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
