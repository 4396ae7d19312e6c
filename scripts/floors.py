"""Packages of a checkout, their order and their imports: ``python scripts/floors.py [CHECKOUT]``.

A room is a package or module directly in `coarse2fine`. Rooms stand on floors, and a file imports only from its own
room and from lower floors. ``--draw docs/architecture.svg`` draws the picture in the documentation.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("tiling", "models")
"""Packages of `coarse2fine` that lie beside it; symbolic links in it lead to them."""

# The lowest floor first. Rooms on one floor do not import each other.
FLOORS = (
    ("_environment", "_version", "terminal", "plugins", "region", "tiling", "models"),
    ("paths", "cascade"),
    ("bases", "config", "progress", "bundle", "learned", "annotations"),
    ("model_file",),
    ("specialists",),
    ("refiners",),
    ("experts",),
    ("model",),
    ("preprocess", "remembered"),
    ("pixel_size", "likeness"),
    ("steps",),
    ("audit",),
    ("fitting",),
    ("results",),
    ("report", "band_run"),
    ("analysis_run",),
    ("engine",),
    ("annotate", "batch", "demo"),
    ("bench",),
    ("cli",),
    ("__init__", "__main__"),
)
Floors: TypeAlias = Sequence[Sequence[str]]
Imports: TypeAlias = Mapping[tuple[str, str], int]
"""Number of files' imports from one room (first) of another (second)."""

_ROW, _LEFT, _TOP, _NAME = 20, 640, 120, 130
"""Pixels of the picture: side of a mark's cell, place of the matrix, width of a name."""
_SUMMARY = 70
"""Most characters of a room's summary in the picture."""
_FONT = "Helvetica, Arial, sans-serif"


def files_of(root: Path) -> dict[str, list[Path]]:
    """Python files of each room of a checkout."""
    inner = [p for p in sorted((root / "coarse2fine").rglob("*.py")) if p.relative_to(root).parts[1] not in PARTS]
    found: dict[str, list[Path]] = {}
    for path in [*inner, *(p for part in PARTS for p in sorted((root / part).rglob("*.py")))]:
        found.setdefault(room_of(path.relative_to(root).parts), []).append(path)
    return found


def room_of(parts: Sequence[str]) -> str:
    """Room of a file or module, given the parts of its path or name from the checkout's root on."""
    return parts[0] if parts[0] in PARTS else parts[1].removesuffix(".py")


@cache
def imported(path: Path) -> tuple[tuple[str, int], ...]:
    """Each module that a file imports, and its level (1: from the same folder)."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", node.level))
    return tuple(found)


def imports_between(files: Mapping[str, Sequence[Path]]) -> Counter[tuple[str, str]]:
    """Count the imports of rooms by other rooms, also those within functions."""
    found: Counter[tuple[str, str]] = Counter()
    for room, paths in files.items():
        for name, level in (each for path in paths for each in imported(path)):
            parts = name.split(".")
            if level or parts[0] != "coarse2fine":
                continue
            other = parts[1] if len(parts) > 1 else "__init__"
            if other != room:
                found[room, other] += 1
    return found


def upward(floors: Floors, imports: Imports) -> list[tuple[str, str]]:
    """Pairs of rooms of which the first imports the second, although that is not on a lower floor."""
    number = {room: n for n, rooms in enumerate(floors) for room in rooms}
    return sorted(pair for pair in imports if number[pair[1]] >= number[pair[0]])


def arrange(rooms: Sequence[str], imports: Imports) -> list[list[str]]:
    """Floors with the fewest upward imports; each room is as low as it can be.

    The time is exponential in the number of rooms that import each other, directly or through others.
    """
    rank = {room: n for n, room in enumerate(r for group in _mutual(rooms, imports) for r in _ordered(group, imports))}
    floor: dict[str, int] = {}
    for room in sorted(rooms, key=lambda room: rank[room]):
        below = [floor[other] for one, other in imports if one == room and rank[other] < rank[room]]
        floor[room] = max(below, default=-1) + 1
    return [sorted(r for r in rooms if floor[r] == n) for n in range(max(floor.values()) + 1)]


def _mutual(rooms: Sequence[str], imports: Imports) -> list[list[str]]:
    """Groups of rooms that import each other, directly or through others; a group comes after those it imports."""
    reach: dict[str, set[str]] = {}
    for room in rooms:
        seen, waiting = {room}, [room]
        while waiting:
            new = {other for one, other in imports if one == waiting[-1]} - seen
            waiting[-1:] = sorted(new)
            seen |= new
        reach[room] = seen
    groups = {tuple(r for r in rooms if r in reach[room] and room in reach[r]) for room in rooms}
    return [list(group) for group in sorted(groups, key=lambda group: (len(reach[group[0]]), group))]


def _ordered(group: Sequence[str], imports: Imports) -> tuple[str, ...]:
    """The order of rooms, the lowest first, in which the fewest imports go up (Held and Karp's dynamic programme)."""

    @cache
    def best(below: frozenset[str]) -> tuple[int, tuple[str, ...]]:
        if not below:
            return 0, ()
        options = []
        for top in sorted(below):
            cost, order = best(below - {top})
            options.append((cost + sum(imports.get((one, top), 0) for one in order), (*order, top)))
        return min(options)

    return best(frozenset(group))[1]


def summary(files: Sequence[Path]) -> str:
    """First sentence of a room's docstring, or as many of its clauses as fit in the picture."""
    first = next((path for path in files if path.name == "__init__.py"), files[0])
    text = " ".join((ast.get_docstring(ast.parse(first.read_text("utf-8"))) or "").split())
    clauses = re.split(r"(?<=[,:;]) ", text.partition(". ")[0])
    while len(clauses) > 1 and len(" ".join(clauses)) > _SUMMARY:
        clauses.pop()
    return " ".join(clauses).rstrip(".,:;").replace("`", "")


def describe(root: Path) -> str:
    """Table of a checkout's rooms, floors, lines and imports."""
    files = files_of(root)
    imports = imports_between(files)
    floors = _floors(files, imports)
    against = upward(floors, imports)
    lines = [f"{'floor':>5}  {'room':<14}{'files':>6}{'lines':>8}  imports"]
    for number, rooms in reversed(list(enumerate(floors))):
        for room in rooms:
            others = sorted(other for one, other in imports if one == room)
            lines.append(
                f"{number:>5}  {room:<14}{len(files[room]):>6}{_lines(files[room]):>8}  {' '.join(others)}".rstrip()
            )
    lines += ["", f"{'folder':<14}{'files':>6}{'lines':>8}"]
    for folder in sorted({path.relative_to(root).parts[0] for path in root.glob("[!.]*/**/*.py")}):
        # Links from the package to its parts are not counted again.
        linked = PARTS if folder == "coarse2fine" else ()
        inside = [path for path in (root / folder).rglob("*.py") if path.relative_to(root).parts[1] not in linked]
        lines.append(f"{folder:<14}{len(inside):>6}{_lines(inside):>8}")
    lines += [
        "",
        f"{len(files)} rooms on {len(floors)} floors; {sum(imports.values())} imports of other rooms",
        f"longest chain of imports: {len(arrange(list(files), imports))} rooms",
        f"upward imports: {sum(imports[pair] for pair in against)}",
        *(f"  {one} imports {other}: {imports[one, other]}" for one, other in against),
    ]
    return "\n".join(lines)


def _floors(files: Mapping[str, Sequence[Path]], imports: Imports) -> Floors:
    """`FLOORS` as far as the checkout has these rooms; another order if it has rooms that are not in it."""
    if not files.keys() <= {room for rooms in FLOORS for room in rooms}:
        return arrange(list(files), imports)
    present = [[room for room in rooms if room in files] for rooms in FLOORS]
    return [rooms for rooms in present if rooms]


def _lines(paths: Sequence[Path]) -> int:
    return sum(path.read_text("utf-8").count("\n") for path in paths)


def draw(root: Path) -> str:
    """Picture of a checkout as SVG: rooms from the highest floor down, and a matrix of what imports what."""
    files = files_of(root)
    imports = imports_between(files)
    floors = _floors(files, imports)
    rooms = [room for floor in reversed(floors) for room in floor]
    place = {room: n for n, room in enumerate(rooms)}
    against = set(upward(floors, imports))
    width, height = _LEFT + _ROW * len(rooms) + 50, _TOP + _ROW * len(rooms) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="{_FONT}" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="20" y="32" font-size="17" font-weight="bold">{len(rooms)} rooms on {len(floors)} floors</text>',
        '<text x="20" y="56" fill="#444">A mark: a file of the room on the left imports from the room above.</text>',
        f'<text x="20" y="74" fill="#444">Marks left of the diagonal are upward imports: {len(against)}.</text>',
    ]
    top = _TOP
    for number, floor in reversed(list(enumerate(floors))):
        if (len(floors) - number) % 2:
            parts.append(f'<rect y="{top}" width="{width}" height="{_ROW * len(floor)}" fill="#eef2f6"/>')
        parts.append(f'<text x="30" y="{top + 14}" text-anchor="end" fill="#888">{number}</text>')
        top += _ROW * len(floor)
    for room, n in place.items():
        x, y = _LEFT + _ROW * n + _ROW // 2, _TOP + _ROW * n
        parts += [
            f'<text x="40" y="{y + 14}" font-weight="bold">{room}</text>',
            f'<text x="{40 + _NAME}" y="{y + 14}" fill="#444">{escape(summary(files[room]))}</text>',
            f'<text transform="translate({x + 4} {_TOP - 6}) rotate(-60)">{room}</text>',
            f'<circle cx="{x}" cy="{y + _ROW // 2}" r="2" fill="#b0b8c0"/>',
        ]
    for one, other in sorted(imports, key=lambda pair: (place[pair[0]], place[pair[1]])):
        x, y = _LEFT + _ROW * place[other] + 4, _TOP + _ROW * place[one] + 4
        colour = "#d9480f" if (one, other) in against else "#1c7ed6"
        parts.append(f'<rect x="{x}" y="{y}" width="{_ROW - 8}" height="{_ROW - 8}" fill="{colour}"/>')
    return "\n".join([*parts, "</svg>", ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or draw a checkout."""
    parser = argparse.ArgumentParser(description="Print the packages of a checkout, their order and their imports.")
    parser.add_argument("checkout", nargs="?", type=Path, default=ROOT, help="folder of a checkout (default: this one)")
    parser.add_argument("--draw", type=Path, metavar="SVG", help="write a picture instead")
    parsed = parser.parse_args(arguments)
    if not (parsed.checkout / "coarse2fine").is_dir():
        parser.error(f"{parsed.checkout} has no folder coarse2fine, expected a checkout of this repository")
    if parsed.draw is None:
        print(describe(parsed.checkout.resolve()))
    else:
        parsed.draw.write_text(draw(parsed.checkout.resolve()), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
