"""Options shared by several commands."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from coarse2fine.config import Config


def add_fields(parser: argparse._ActionsContainer, *names: str, short: str = "") -> None:
    """Add options for parameters of an analysis; type, choices, default and help come from the field of `Config`."""
    hints = get_type_hints(Config, include_extras=True)
    for name in names:
        hint, text = get_args(hints[name])
        kinds = get_args(hint) or (hint,)
        kind: dict[str, Any] = {"choices": kinds} if get_origin(hint) is Literal else {"type": kinds[0]}
        flags = [*short.split(), f"--{name.replace('_', '-')}"]
        parser.add_argument(*flags, default=getattr(Config, name), help=text, **kind)


def config_from(parsed: argparse.Namespace) -> Config:
    """Parameters of an analysis from a command line that has options for all of them."""
    return Config(**{field.name: getattr(parsed, field.name) for field in fields(Config)})


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that computes."""
    add_fields(parser, "seed", "device", "precision")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def add_opening(parser: argparse.ArgumentParser) -> None:
    """Add the options for opening images."""
    parser.add_argument("--mpp", type=float, help="microns per pixel, instead of the file's")
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options for reading samples of images."""
    parser.add_argument(
        "--channels", type=int, nargs="+", metavar="N", help="one or three channels to use, counted from 0"
    )
    parser.add_argument(
        "--value-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="stored values that become black and white"
    )


def check_place(folder: Path) -> None:
    """Check before the work that the results' folder can be created and written.

    Raises
    ------
    OSError
        If it cannot.
    """
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is a file, expected a folder for the results")
    check_writable(place)


def check_writable(folder: Path) -> None:
    """Raise a PermissionError if a folder cannot be written."""
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"no permission to write into {folder}; name another folder")
