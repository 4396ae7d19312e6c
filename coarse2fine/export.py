"""Records as JSON, each whole or not at all, and the colour of a class."""

from __future__ import annotations

import colorsys
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coarse2fine.terminal import printable
from coarse2fine.tiling.atomic import replacing_stream

NOT_UNICODE = "backslashreplace"
"""How halves of characters, as in names of files that are not Unicode, are written: as JSON's own escapes."""
_LIGHTNESS = (0.36, 0.46, 0.56)  # readable on white paper as well as on a dark scene
_GOLDEN = (math.sqrt(5) - 1) / 2  # steps of this share of a circle never come close to where one was before
_FORMULA = ("=", "+", "-", "@")
_NUMBER = re.compile(r"[0-9]{1,9}\Z")


@functools.lru_cache(maxsize=4096)
def label_colour(label: str) -> tuple[int, int, int]:
    """Colour of a label: the same in every run and every place, whatever other labels there are.

    Labels that differ by a number at their end, such as "kind 4" and "kind 5", get colours far apart.

    Parameters
    ----------
    label : str
        Name of the class.

    Returns
    -------
    tuple of int
        Red, green and blue, 0 to 255.
    """
    number = _NUMBER.search(label)
    stem, step = (label[: number.start()], int(number[0]) % 1000) if number else (label, 0)
    digest = hashlib.sha256(stem.encode("utf-8", "surrogatepass")).digest()
    hue = (int.from_bytes(digest[:4], "big") / 2**32 + step * _GOLDEN) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, _LIGHTNESS[(digest[4] + step) % len(_LIGHTNESS)], 0.8)
    return round(red * 255), round(green * 255), round(blue * 255)


def write_json(path: str | os.PathLike[str], payload: Mapping[str, Any]) -> Path:
    """Write a record as indented JSON; an existing file is replaced once the new one is complete.

    Parameters
    ----------
    path : path-like
        File to write; compressed with gzip when the name ends in ``.gz``. Its folder must exist.
    payload : mapping
        May hold, at any depth: mappings, lists, tuples, dataclasses, paths, NumPy scalars and arrays, texts,
        finite numbers, truth values and None.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If the folder does not exist, or `path` is a folder.
    ValueError
        If a number is NaN or infinite; the message says where in the record.
    TypeError
        If a value is of another type; the message says where in the record.
    """
    target = Path(path)
    text = json.dumps(plain(payload, "", target), allow_nan=False, ensure_ascii=False, indent=2)
    with replacing_stream(target) as stream:
        stream.write(f"{text}\n".encode("utf-8", NOT_UNICODE))
    return target


def csv_cell(value: Any) -> Any:
    """A value as a cell of a CSV: a text that a spreadsheet would take for a formula begins with an apostrophe.

    Control characters and the ends of lines are written as escapes: not every program that reads a table, or shows it
    in a terminal, is proof against them.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def plain(value: Any, place: str, target: Path) -> Any:
    """Turn a value into JSON's own types; `place` is where it stands, for the message."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(
                f"cannot write {target}: {place} is {value}, but JSON has no NaN or infinity; "
                "leave the value out or give None"
            )
        return float(value)
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), place, target)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{place}.{key}".lstrip("."), target) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{place}[{index}]", target) for index, item in enumerate(value)]
    raise TypeError(
        f"cannot write {target}: {place} is a {type(value).__name__}, expected numbers, texts, mappings, "
        "lists, tuples, dataclasses, paths or NumPy values; convert it first"
    )
