"""The examples run as they are, and do what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

EXAMPLES = ROOT / "docs" / "examples"
WRITTEN = {
    "fit_and_audit": ("holes.c2f", "holes.geojson", "overview.png"),
    "folder_to_table": ("finds.csv", "results/batch.json", "results/report.html"),
    "expert_behind_the_scan": ("overview.png",),
}


def test_all_examples_are_listed() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(WRITTEN)
    page = (ROOT / "docs" / "getting-started.md").read_text("utf-8")
    assert [path.name for path in EXAMPLES.iterdir() if path.is_file() and f"examples/{path.name}" not in page] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    if name == "folder_to_table":
        pytest.importorskip("sklearn")
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert done.stdout
    assert [each for each in WRITTEN[name] if not (tmp_path / "out" / each).exists()] == []
