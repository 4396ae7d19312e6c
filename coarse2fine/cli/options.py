"""What several commands share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what every command that computes takes."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="torch device (default: the best there is)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def add_opening(parser: argparse.ArgumentParser) -> None:
    """Add how images are opened."""
    parser.add_argument("--mpp", type=float, help="microns per pixel, instead of what the file says")
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add how their samples are read."""
    parser.add_argument(
        "--channels", type=int, nargs="+", metavar="N", help="the one or three channels to use, counted from 0"
    )
    parser.add_argument(
        "--value-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="stored values that become black and white"
    )


def check_place(folder: Path) -> None:
    """The result's place is checked first: an hour of work must not end at a folder that cannot be written.

    Raises
    ------
    OSError
        If there can be no such folder.
    """
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is a file, expected a folder for the results")
    check_writable(place)


def check_writable(folder: Path) -> None:
    """See `check_place`."""
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"writing into {folder} is not permitted; name another folder")
