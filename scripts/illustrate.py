"""Make the pictures of the documents, in some minutes: ``python scripts/illustrate.py pictures`` (or ``screens``)."""

from __future__ import annotations

import argparse

from documents.pictures import draw_pictures
from documents.screens import take_screens


def main() -> None:
    """Make the figures, or the screenshots, which need Chromium."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("pictures", "screens"))
    draw_pictures() if parser.parse_args().what == "pictures" else take_screens()


if __name__ == "__main__":
    main()
