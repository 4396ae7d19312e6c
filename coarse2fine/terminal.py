"""What is printed: texts of files and strangers cannot steer the terminal."""

from __future__ import annotations

import re
import sys
from typing import TextIO

# Control characters (an escape sequence moves the cursor, or types for the user), the ends of lines and paragraphs of
# Unicode, and what reverses the direction of writing, so that a name reads as another.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")


def printable(text: object) -> str:
    """A text as one line in which all control characters are written as escapes."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


def say(text: object, *, file: TextIO | None = None) -> None:
    """Print a text as one line, to standard output unless told otherwise; see `printable`."""
    print(printable(text), file=file or sys.stdout, flush=True)


def say_lines(text: object) -> None:
    """Print a text whose lines stay lines."""
    for line in str(text).split("\n"):
        say(line)
