"""The benchmark of large sheets of letters, on a small one."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import command
from benchmarks.sheets.run import SheetScale, benchmark_sheets


def test_letters_are_found_named_and_counted(tmp_path: Path) -> None:
    figures = benchmark_sheets(tmp_path, scale=SheetScale(1024, 40, 40, 2)).figures()
    for name in ("default", "exhaustive"):
        assert 0.9 < figures[f"{name}/found"] <= 1
        assert 0.9 < figures[f"{name}/right"] <= 1
        assert 0 < figures[f"{name}/names"] < 1
    assert figures["default/saving_macs"] == pytest.approx(
        figures["exhaustive/gmac"] / figures["default/gmac"], rel=0.1
    )
    assert len(list(tmp_path.glob("*.zarr"))) == 2


def test_from_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("benchmarks.sheets.run.QUICK", SheetScale(512, 9, 9, 1))
    assert command.main(["sheets", "--quick", "--out", str(tmp_path)]) == 0
    assert "730 classes" in capsys.readouterr().out
    assert (tmp_path / "sheets.json").is_file()
