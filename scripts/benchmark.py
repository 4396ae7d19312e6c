"""Measure cost saved and finds missed, reading speed and more: ``python scripts/benchmark.py NAME``.

``--help`` lists the names; ``scenes`` is ``coarse2fine benchmark scenes``.
"""

from __future__ import annotations

import sys

from benchmarks.command import main

if __name__ == "__main__":
    sys.exit(main())
