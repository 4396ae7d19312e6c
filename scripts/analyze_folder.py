"""Analyse a folder of images: ``python scripts/analyze_folder.py INPUT OUT [OPTION ...]``.

The same as ``coarse2fine analyze INPUT -o OUT``, whose ``--help`` lists the options. INPUT is a folder, a glob in
quotes, a list (.txt; .csv with the columns path, mpp, model), an image or an address.
"""

from __future__ import annotations

import sys

from coarse2fine.cli.main import main

if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1].startswith("-") or sys.argv[2].startswith("-"):
        sys.exit(__doc__)
    sys.exit(main(["analyze", sys.argv[1], "-o", *sys.argv[2:]]))
