"""The examples in the docs run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = re.split(r"^## ", (ROOT / "docs" / "extending.md").read_text("utf-8"), flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_examples_of_extending_run(section: str, tmp_path: Path) -> None:
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE))
    assert code
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr


def test_architecture_names_what_exists() -> None:
    named = re.findall(r"`([\w/.]+)`", (ROOT / "docs" / "architecture.md").read_text("utf-8"))
    paths = [name for name in named if name.endswith((".py", ".j2", "/"))]
    modules = [name for name in named if re.fullmatch(r"[a-z][a-z_.]*\.[A-Za-z_]+", name) and name not in paths]
    assert len(paths) > 40
    assert [name for name in paths if not any((root / name).exists() for root in (ROOT, ROOT / "coarse2fine"))] == []
    for name in modules:
        if not (ROOT / name).exists():
            resolve_name(f"coarse2fine.{name}")
