"""The benchmark of many objects runs, and says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.exporting import Scale, benchmark_export


def test_it_measures_and_cleans_up(tmp_path: Path) -> None:
    report = benchmark_export(tmp_path, scale=Scale((50, 200), 1))
    assert list(tmp_path.iterdir()) == []
    (written,) = report.save(tmp_path / "export.json")
    figures = json.loads(written.read_text("utf-8"))["figures"]
    assert figures["merge_objects_seconds_200"] > 0
    assert "write_geojson_gzipped_growth_200" in figures
    assert 300 < figures["regions.geojson_bytes_200"] < 800
    assert "draw a tile of all" in str(report)
