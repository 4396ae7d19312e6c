"""Convert an image to an OME-Zarr pyramid: ``python scripts/convert.py IMAGE -o OUT.zarr``.

The same as ``coarse2fine convert``.
"""

from __future__ import annotations

import sys

from coarse2fine.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
