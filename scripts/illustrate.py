"""Make the pictures of the documents, in some minutes: ``python scripts/illustrate.py pictures``.

Instead of ``pictures`` also ``screens``, or ``mechanism``, which is drawn in a second.
"""

from __future__ import annotations

import argparse

from documents.mechanism import draw_mechanism
from documents.pictures import draw_pictures
from documents.screens import take_screens


def main() -> None:
    """Make the figures, or the screenshots, which need Chromium, or the figure of specialists."""
    parser = argparse.ArgumentParser(description=__doc__)
    ways = {"pictures": draw_pictures, "screens": take_screens, "mechanism": draw_mechanism}
    parser.add_argument("what", choices=tuple(ways))
    ways[parser.parse_args().what]()


if __name__ == "__main__":
    main()
