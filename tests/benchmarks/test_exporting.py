"""The benchmark of many objects runs, and says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.exporting import benchmark_export


def test_it_measures_and_cleans_up(tmp_path: Path) -> None:
    report = benchmark_export(tmp_path, sizes=(50, 200), rounds=1)
    assert list(tmp_path.iterdir()) == []
    figures = json.loads(report.save(tmp_path / "export.json").read_text("utf-8"))["figures"]
    assert figures["merge_objects/seconds_200"] > 0
    assert "write_geojson_gzipped/growth_200" in figures
    assert 300 < figures["regions.geojson/bytes_200"] < 800
    (line,) = (line for line in str(report).splitlines() if "draw_a_tile_of_all" in line)
    assert len(line.split()) == 4
