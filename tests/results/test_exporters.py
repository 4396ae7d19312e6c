"""Exporters: each suffix writes what the method of that name writes; others are plugged in by a call or a package."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import coarse2fine as c2f
from coarse2fine.model import Model
from coarse2fine.results import exporters

MakeImage = Callable[..., NDArray[np.uint8]]
DOCS = Path(__file__).resolve().parents[2] / "docs"
PACKAGE = """
def write(path, analysis):
    path.write_text(f"{len(analysis.regions)} finds")
"""


@pytest.fixture(scope="module")
def analysis(make_image: MakeImage, detector: Model) -> Iterator[c2f.Analysis]:
    with c2f.analyze(c2f.open_image(make_image(150, 200), mpp=0.5), detector, budget=0.5) as made:
        yield made


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporters, "_registered", {})


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An installed package with exporters of ".count", of ".CSV", and of one that cannot be imported."""
    site = tmp_path / "site"
    (site / "finds_counter-1.0.dist-info").mkdir(parents=True)
    (site / "finds_counter.py").write_text(PACKAGE)
    points = (
        "[coarse2fine.exporters]\n.count = finds_counter:write\n.CSV = finds_counter:write\n.bad = no_such_thing:f\n"
    )
    (site / "finds_counter-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: finds-counter\n")
    (site / "finds_counter-1.0.dist-info" / "entry_points.txt").write_text(f"[coarse2fine.exporters]\n{points}")
    monkeypatch.syspath_prepend(str(site))
    yield "finds_counter"
    sys.modules.pop("finds_counter", None)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("a.csv", "to_csv"),
        ("a.GeoJSON", "to_geojson"),
        ("a.b.geojson.gz", "to_geojson"),
        ("a.json", "to_coco"),
        ("a.json.gz", "to_coco"),
        ("a.parquet", "to_parquet"),
        ("a.png", "plot"),
        ("a.svg", "plot"),
    ],
)
def test_the_suffix_says_what_is_written(analysis: c2f.Analysis, tmp_path: Path, name: str, method: str) -> None:
    (tmp_path / "other").mkdir()
    other = getattr(analysis, method)(tmp_path / "other" / name)
    written = analysis.to(tmp_path / name)
    assert written == tmp_path / name
    assert written.read_bytes() == other.read_bytes()


def test_maps_and_tiles_too(analysis: c2f.Analysis, tmp_path: Path) -> None:
    assert (analysis.to(tmp_path / "a.ome.zarr") / "zarr.json").is_file()
    h5py = pytest.importorskip("h5py")
    with h5py.File(analysis.to(str(tmp_path / "a.h5")), "r") as file:
        assert set(file) == {"coords"}


def test_a_package_plugs_one_in(analysis: c2f.Analysis, tmp_path: Path, plugin: str) -> None:
    assert analysis.to(tmp_path / "a.parquet").is_file()
    assert plugin not in sys.modules
    for name in ("a.count", "a.csv"):
        assert analysis.to(tmp_path / name).read_text() == f"{len(analysis.regions)} finds"
    c2f.register_exporter(".csv", lambda path, _: path.write_text("mine"))
    assert analysis.to(tmp_path / "a.csv").read_text() == "mine"
    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
        analysis.to(tmp_path / "a.bad")


def test_the_one_of_the_docs_is_plugged_in_by_a_call(analysis: c2f.Analysis, tmp_path: Path) -> None:
    blocks = [
        b for path in DOCS.glob("extending*.md") for b in re.findall(r"```python\n(.*?)```", path.read_text(), re.S)
    ]
    (code,) = (block for block in blocks if "register_exporter" in block)
    exec(code, {})
    with analysis.to(tmp_path / "a.stage.csv").open(newline="") as file:
        names, *rows = csv.reader(file)
    assert names == ["x", "y"]
    centres = [(x / 2, y / 2) for y, x in (region.full_centre for region in analysis.regions)]
    assert [tuple(map(float, row)) for row in rows] == centres
    assert centres


@pytest.mark.parametrize("name", ["a.kml", "csv", "a.csv.bak"])
def test_another_suffix_is_refused_with_those_there_are(
    analysis: c2f.Analysis, tmp_path: Path, plugin: str, name: str
) -> None:
    c2f.register_exporter(".Mine", lambda path, _: path.write_text(""))
    with pytest.raises(
        ValueError, match=r"expected a name that ends in .*\.count, \.csv, \.geojson, .*\.mine, .*\.zarr"
    ):
        analysis.to(tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("suffix", ["", ".", "csv"])
def test_a_suffix_begins_with_a_dot(suffix: str) -> None:
    with pytest.raises(ValueError, match=r"expected the ending of a name such as '\.kml'"):
        c2f.register_exporter(suffix, lambda *_: None)


def test_an_exporter_can_be_called() -> None:
    with pytest.raises(TypeError, match=r"expected a function write\(path, analysis\), got 'to_csv'"):
        c2f.register_exporter(".kml", "to_csv")  # type: ignore[arg-type]
