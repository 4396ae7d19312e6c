"""Records as JSON, written completely or not at all, and safe cells of CSV tables."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coarse2fine.terminal import printable
from coarse2fine.tiling.writing.atomic import replacing_stream

NOT_UNICODE = "backslashreplace"
"""Encoding error handler: surrogates, as in file names that are not Unicode, become JSON's escapes."""
_FORMULA = ("=", "+", "-", "@")


def write_json(path: str | os.PathLike[str], payload: Mapping[str, Any]) -> Path:
    """Write a record as indented JSON; an existing file is replaced once the new one is complete.

    Parameters
    ----------
    path : path-like
        File to write; gzipped if the name ends in ``.gz``. Its folder must exist.
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
        If a number is NaN or infinite; the message names its place in the record.
    TypeError
        If a value is of another type; the message names its place in the record.
    """
    target = Path(path)
    text = json.dumps(_plain(payload, "", target), allow_nan=False, ensure_ascii=False, indent=2)
    with replacing_stream(target) as stream:
        stream.write(f"{text}\n".encode("utf-8", NOT_UNICODE))
    return target


def compact(value: Any) -> str:
    """JSON on one line; ValueError for NaN and infinity."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def csv_cell(value: Any) -> Any:
    """A value as a cell of a CSV: a text that a spreadsheet would run as a formula is prefixed with an apostrophe.

    Control characters and line ends are escaped: some readers of tables, and terminals, do not handle them safely.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _plain(value: Any, place: str, target: Path) -> Any:
    """Convert a value to JSON's types; `place` is its path in the record, for messages."""
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
        return _plain(value.tolist(), place, target)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{place}.{key}".lstrip("."), target) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]", target) for index, item in enumerate(value)]
    raise TypeError(
        f"cannot write {target}: {place} is a {type(value).__name__}, expected numbers, texts, mappings, "
        "lists, tuples, dataclasses, paths or NumPy values; convert it first"
    )
