"""Pages of the site that are made when it is built, so that they cannot differ from what they describe.

MkDocs calls `on_files`. The home page is the README's first screen; the references are made from `coarse2fine.__all__`
and from the command line's parser; CONTRIBUTING.md and CHANGELOG.md are shown as they are.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coarse2fine
from coarse2fine.cli.main import make_parser

ROOT = Path(__file__).resolve().parents[2]
_WIDTH = 100
_HOME = """
## Where to go on

| | |
|---|---|
| A first result of your own in ten minutes | [Getting started](getting-started.md) |
| You have a heavy model already | [Experts](experts.md) |
| You have many images | [Folders of images](batches.md) |
| How much was missed? | [Budgets and recall](recall.md) |
| Does it pay for my images? | [Results and benchmarks](benchmarks.md), [What it cannot do](limits.md) |
| Something does not work | [Troubleshooting](troubleshooting.md) |
"""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to MkDocs's files; called by MkDocs."""
    from mkdocs.structure.files import File  # noqa: PLC0415 (only there when MkDocs calls)

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Markdown of each page, by its path in the site."""
    return {
        "index.md": _relinked(_first_screen()) + _HOME,
        "contributing.md": _relinked((ROOT / "CONTRIBUTING.md").read_text("utf-8")),
        "changelog.md": _relinked((ROOT / "CHANGELOG.md").read_text("utf-8")),
        "reference/python.md": _python_reference(),
        "reference/cli.md": _cli_reference(),
    }


def _first_screen() -> str:
    return (ROOT / "README.md").read_text("utf-8").partition("\n## ")[0] + "\n"


def _relinked(text: str) -> str:
    """Links relative to the repository's root as links relative to the folder `docs`."""
    return re.sub(r"\]\(docs/", "](", text)


def _python_reference() -> str:
    lines = [
        "# Python reference",
        "",
        "Everything that `import coarse2fine as c2f` offers; all other modules may change.",
    ]
    for name in sorted(coarse2fine.__all__, key=lambda name: (name[0].isupper(), name)):
        if not name.startswith("__"):
            lines += ["", f"::: coarse2fine.{name}"]
    return "\n".join(lines) + "\n"


def _cli_reference() -> str:
    """Each command's help, as the command line prints it."""
    os.environ["COLUMNS"] = str(_WIDTH)
    lines = ["# Command line", "", "Each command prints its part of this page with `--help`."]
    for parser in _parsers(make_parser()):
        lines += ["", f"## {parser.prog}", "", "```text", parser.format_help().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its commands, without the second names of commands."""
    yield parser
    for action in parser._actions:  # noqa: SLF001 (argparse offers no other way to its commands)
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for each in dict.fromkeys(action.choices.values()):
                yield from _parsers(each)
