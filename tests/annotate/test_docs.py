"""The commands of docs/annotating.md run as they stand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from coarse2fine.annotate.server import AnnotateServer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "annotating.md"
COMMANDS = re.findall(r"^coarse2fine (.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
COCO = {
    "images": [{"id": 1, "file_name": "scene.png", "width": 400, "height": 300}],
    "categories": [{"id": 1, "name": "crater"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40]}],
}


def test_there_are_commands() -> None:
    assert len(COMMANDS) == 4


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command: str, fitted: AnnotateServer, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    shutil.copytree(fitted.store.path.parent, folder)
    if "coco.json" in command:
        (folder / "scene.geojson").unlink()
        (folder / "coco.json").write_text(json.dumps(COCO), "utf-8")
    arguments = [sys.executable, "-m", "coarse2fine.cli.main", *command.split()]
    if not command.startswith("view"):
        subprocess.run(arguments, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert (folder / "out" / "analysis.json").exists()
        return
    with subprocess.Popen([*arguments, "--no-browser"], cwd=folder, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            url = running.stdout.readline().split(" at ")[1].split()[0]
            with urllib.request.urlopen(f"{url}info.json", timeout=60) as answer:
                assert json.load(answer)["width"] == 400
        finally:
            running.kill()
