"""The order of packages that `scripts/floors.py` finds."""

from __future__ import annotations

import random
from collections import Counter
from itertools import permutations
from pathlib import Path
from xml.etree import ElementTree as ET

import floors
import pytest


@pytest.mark.parametrize("seed", range(20))
def test_fewest_imports_go_up(seed: int) -> None:
    """As few as in the best of all orders."""
    chance = random.Random(seed)
    rooms = list("abcdef")
    pairs = [(a, b) for a in rooms for b in rooms if a != b]
    imports = Counter({pair: chance.randint(1, 4) for pair in chance.sample(pairs, 3 + seed % 15)})
    found = floors.arrange(rooms, imports)
    assert sorted(room for floor in found for room in floor) == rooms
    least = min(
        sum(n for (one, other), n in imports.items() if order.index(one) < order.index(other))
        for order in permutations(rooms)
    )
    assert sum(imports[pair] for pair in floors.upward(found, imports)) == least


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    files = {
        "coarse2fine/__init__.py": "",
        "coarse2fine/top.py": "'''Top.'''\nfrom coarse2fine.low import part\nimport coarse2fine.tiling.box\n",
        "coarse2fine/low/__init__.py": "'''Low < high.'''\n",
        "coarse2fine/low/part.py": "from coarse2fine.low import other\n\ndef f():\n    from coarse2fine import a\n",
        "coarse2fine/low/other.py": "from coarse2fine.top import a\nfrom coarse2fine.tiling import box\nimport numpy\n",
        "tests/tiling/test_box.py": "import coarse2fine\n",
        "tiling/__init__.py": "",
        "tiling/box.py": "from .. import tiling\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


def test_a_checkout_is_described(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert floors.main([str(checkout)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "4 rooms on 3 floors; 5 imports of other rooms" in lines
    assert "upward imports: 1" in lines
    assert "coarse2fine 5 11" in lines
    assert "tests 1 1" in lines
    assert "tiling 2 1" in lines


def test_upward_imports_are_drawn_red(checkout: Path) -> None:
    target = checkout / "picture.svg"
    assert floors.main([str(checkout), "--draw", str(target)]) == 0
    root = ET.parse(target).getroot()
    fills = Counter(each.get("fill") for each in root.iter("{http://www.w3.org/2000/svg}rect"))
    assert fills["#d9480f"] == 1
    assert fills["#1c7ed6"] == 4
    assert "Low < high" in {each.text for each in root.iter("{http://www.w3.org/2000/svg}text")}


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        floors.main([str(tmp_path)])
    assert "expected a checkout" in capsys.readouterr().err
