"""The documents, and the code in them."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NEEDS = re.compile(r"# needs: (.+)\n")


@dataclass(frozen=True)
class Block:
    """A block of code.

    Parameters
    ----------
    page : Path
    line : int
        Of its first line of code, from 1.
    language : str
        Empty if the page names none.
    code : str
    """

    page: Path
    line: int
    language: str
    code: str

    @property
    def needs(self) -> tuple[str, ...]:
        """What the comment ``# needs: ...`` in its first line names: packages, or things that only a reader has."""
        found = _NEEDS.match(self.code)
        return tuple(found[1].split(", ")) if found else ()

    @property
    def runs(self) -> bool:
        """Whether all that it needs is a package that is installed."""
        return all(name.isidentifier() and importlib.util.find_spec(name) is not None for name in self.needs)


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text("utf-8")
    found = [(text.count("\n", 0, match.start()) + 2, match[1], match[2]) for match in _FENCE.finditer(text)]
    return [Block(page, line, kind, code) for line, kind, code in found if kind == language]


def names(pages: tuple[Path, ...]) -> list[str]:
    return [page.name for page in pages]
