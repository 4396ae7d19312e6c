"""Make the pictures of the documents, in some minutes: ``python scripts/illustrate.py pictures``.

Instead of ``pictures`` also ``screens``, or ``mechanism`` and ``figures``, which take a second.
"""

from __future__ import annotations

import argparse

from documents.figures import write_figures
from documents.mechanism import draw_mechanism
from documents.pictures import draw_pictures
from documents.screens import take_screens


def main() -> None:
    """Make the pictures, the screenshots, which need Chromium, the picture of specialists, or the page of figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    ways = {"pictures": draw_pictures, "screens": take_screens, "mechanism": draw_mechanism, "figures": write_figures}
    parser.add_argument("what", choices=tuple(ways))
    ways[parser.parse_args().what]()


if __name__ == "__main__":
    main()
