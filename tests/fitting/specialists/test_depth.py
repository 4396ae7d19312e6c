"""How deep a tree of specialists may grow."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coarse2fine import fit
from coarse2fine.cli.main import main
from coarse2fine.fitting.specialists.add import _Learning
from coarse2fine.fitting.specialists.grow_tree import TreeGrower
from coarse2fine.fitting.specialists.items import ItemStore
from coarse2fine.models.feature_maps import ColumnSpec
from tests.fitting.specialists.test_train import QUICK, columns, items, twins


@pytest.mark.parametrize("depth", [1, 2])
def test_a_tree_takes_no_more_steps_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    store = ItemStore.write(tmp_path / "store", [items()], loss="sigmoid", name="tiles")
    cells: Any = SimpleNamespace(store=store, held_cells=200)
    tried = []
    deepen = TreeGrower.deepen

    def counted(grower: TreeGrower, spec: ColumnSpec) -> bool:
        tried.append(spec)
        return deepen(grower, spec)

    monkeypatch.setattr(TreeGrower, "deepen", counted)
    verdict, tree = _Learning(cells, twins(), columns()[0], ("a", "b"), QUICK, depth)("tree", 1)
    assert verdict is not None
    assert tree is not None
    assert 1 <= len(tried) <= depth
    assert int(tree.clusters.depths.max()) <= depth


def test_a_depth_that_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for depth in (0, 9):
        with pytest.raises(ValueError, match=f"depth must be a whole number of steps .*, 1 to 8; got {depth}"):
            fit([], [], depth=depth, progress=False)
    given = ["fit", str(tmp_path), str(tmp_path), "-o", str(tmp_path / "m.c2f"), "--depth", "0", "-q"]
    assert main(given) == 1
    assert "depth must be a whole number of steps" in capsys.readouterr().err
