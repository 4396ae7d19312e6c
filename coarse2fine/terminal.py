"""Printing of untrusted text: control characters from files cannot reach the terminal."""

from __future__ import annotations

import re
import sys
from typing import TextIO

# Control characters (escape sequences can move the cursor or type for the user), Unicode line and paragraph separators,
# and marks that reverse the direction of writing, with which a name can pose as another.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")


def printable(text: object) -> str:
    """One line of text, with control characters as escapes."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


def say(text: object, *, file: TextIO | None = None) -> None:
    """Print a text as one line, by default to standard output; see `printable`."""
    print(printable(text), file=file or sys.stdout, flush=True)


def say_lines(text: object) -> None:
    """Print a text line by line."""
    for line in str(text).split("\n"):
        say(line)
