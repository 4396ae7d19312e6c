"""Links, messages and the pages that are made when the site is built."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from documents.site import pages

import coarse2fine
from tests.docs.pages import PAGES, ROOT, names

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_OWN = (*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "models" / "embedded").glob("*.md")))
_MADE = {"index.md", "contributing.md", "changelog.md", "reference/python.md", "reference/cli.md"}


def anchors(path: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub and MkDocs make them."""
    found = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()) for heading in found
    }


@pytest.mark.parametrize("page", _OWN, ids=names(_OWN))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)):
        if "://" in link:
            continue
        name, _, anchor = unquote(link).partition("#")
        target = page if not name else page.parent / name
        assert target.exists() or name in _MADE, f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_site_is_complete() -> None:
    made = pages()
    assert set(made) == _MADE
    for name in set(coarse2fine.__all__) - {"__version__"}:
        assert f"::: coarse2fine.{name}\n" in made["reference/python.md"]
    for command in ("analyze", "fit", "view", "expert check", "doctor"):
        assert f"\n## coarse2fine {command}\n" in made["reference/cli.md"]
    menu = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert [p.name for p in PAGES[1:] if p.name not in menu] == []


def test_messages_of_troubleshooting_exist() -> None:
    said = list(_texts())
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    rows = re.findall(r"^\| (`[^|]+`)[^`|]*\|", page, re.MULTILINE)
    assert len(rows) > 20
    for row in rows:
        parts = [part for message in re.findall(r"`([^`]+)`", row) for part in message.split("...")]
        for part in parts:
            # Short parts, and names of code, are no messages.
            if len(part.strip()) > 12 and " " in part.strip() and not part.startswith("import "):
                assert any(part.strip() in text for text in said), part


def _texts() -> list[str]:
    """All texts in the source; what is inserted into them is left out."""
    found = []
    for room in ("coarse2fine", "tiling", "models"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "\0" for p in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found
