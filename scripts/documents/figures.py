"""The page of figures, `docs/figures.md`, from the JSON that benchmarks wrote; no figure in it is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "docs" / "figures"
PAGE = ROOT / "docs" / "figures.md"
_LEAD = """# All figures

What the benchmarks printed, with their parameters and the machine. This page is made from the files in `docs/figures`,
which the benchmarks wrote (here without single runs), by `python scripts/illustrate.py figures`;
[results](benchmarks.md) says what they mean.
"""
_PACKAGES = ("python", "torch", "numpy", "zarr")


def write_figures() -> None:
    """Write the page."""
    PAGE.write_text(page(), "utf-8")


def page() -> str:
    """Markdown of the page: a section for each file."""
    parts = [_section(path.stem, json.loads(path.read_text("utf-8"))) for path in sorted(RECORDS.glob("*.json"))]
    return "\n".join([_LEAD, *parts])


def _section(name: str, record: dict[str, Any]) -> str:
    machine, versions = record["machine"], record["versions"]
    packages = ", ".join(f"{package} {versions[package]}" for package in _PACKAGES if package in versions)
    given = {key: value for key, value in record["parameters"].items() if value not in (None, False, [], {})}
    lines = [
        f"## {name}",
        "",
        f"Benchmark `{record['benchmark']}`, seeds {', '.join(map(str, record['seeds']))}; {_parameters(given)}.",
        f"{machine['cpu']}: {_count(machine['cores'], 'core')}, {_count(machine['threads'], 'thread')}, "
        f"{machine['runtime']}. {packages}.",
        "",
        "```text",
        *record["printed"],
        "```",
        "",
    ]
    return "\n".join(lines)


def _parameters(given: dict[str, Any]) -> str:
    return "; ".join(f"{key} {json.dumps(value)}" for key, value in given.items()) or "no parameters"


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
