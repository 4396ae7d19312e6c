"""Text form of a timm network, which may come from an untrusted model file.

Besides the network's arguments, timm takes some that download or open files (a checkpoint may execute code); only plain
values for the network itself are accepted.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from .errors import ModelError

PREFIX = "timm:"
_RESERVED = (
    *("pretrained", "checkpoint", "cache", "feature", "out_indices", "in_chans", "num_classes", "model", "kwargs"),
    *("scriptable", "exportable", "no_jit", "device", "dtype"),
)
"""Prefixes of arguments that `timm.create_model` and its builder consume, or that coarse2fine sets."""
_MOST, _MOST_ITEMS, _MOST_ITEM = 4096, 8, 256
_LONGEST = 80
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def parse_network(text: str) -> tuple[str, dict[str, str]]:
    """Parse name and arguments of a network from ``"timm:NAME?argument=value&argument=value"``.

    Raises
    ------
    ModelError
        If the text has another form, or names an argument that is not for the network itself.
    """
    name, _, query = text.removeprefix(PREFIX).partition("?")
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    whole = text.startswith(PREFIX) and name and text.split() == [text]
    if not whole or any(not (key and equals) for key, equals, _ in pairs):
        raise ModelError(f"expected a base such as 'timm:mobilenetv2_100' or 'timm:NAME?argument=value', got {text!r}")
    for key, _, value in pairs:
        if key.startswith(_RESERVED):
            raise ModelError(
                f"{key} is not an argument of the network but controls other actions of timm; leave it out"
            )
        _value(key, value)
    return name, {key: value for key, _, value in pairs}


def argument_values(arguments: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Convert arguments to numbers, booleans, tuples of numbers or names.

    Raises
    ------
    ModelError
        If a value is anything else.
    """
    return {key: _value(key, text) for key, text in arguments}


def _value(key: str, text: str) -> Any:
    try:
        value = ast.literal_eval(text) if len(text) <= _LONGEST else None
    except (ValueError, SyntaxError):
        value = text
    items = list(value) if isinstance(value, tuple | list) else None
    if isinstance(value, str):
        plain = _NAME.fullmatch(value) is not None
    elif items is not None:
        plain = len(items) <= _MOST_ITEMS and all(isinstance(i, int | float) and abs(i) <= _MOST_ITEM for i in items)
    else:
        plain = isinstance(value, int | float) and abs(value) <= _MOST
    if not plain:
        raise ModelError(
            f"{key} of a base is {text!r:.60}, expected a number up to {_MOST:,}, up to {_MOST_ITEMS} numbers up to "
            f"{_MOST_ITEM}, a truth value, or a name"
        )
    return value
