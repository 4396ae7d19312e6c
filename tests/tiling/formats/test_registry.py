"""Formats of other packages: found, asked in order, and opened everywhere."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

import coarse2fine as c2f
from coarse2fine.model import Model
from coarse2fine.paths import expand_paths
from coarse2fine.tiling.formats import registry
from coarse2fine.tiling.formats.registry import Location
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.source import Source, array_source

ROOT = Path(__file__).resolve().parents[3]
MODULE = """
import io

import numpy as np

from coarse2fine import Format
from coarse2fine.tiling.source import array_source


def open_plain(location):
    file = location.file()
    try:
        return array_source(np.load(io.BytesIO(file.read_at(0, file.size))), "plain")
    finally:
        file.close()


PLAIN = Format("plain", lambda head, location: head.startswith(b"\\x93NUMPY"), open_plain, (".npy",))
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_registered", {})
    registry._installed.cache_clear()
    yield
    registry._installed.cache_clear()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with one format that works and two that do not."""
    site = tmp_path / "site"
    about = site / "plain_images-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "plain_images.py").write_text(MODULE, encoding="utf-8")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-images\nVersion: 1.0\n", encoding="utf-8")
    points = "plain = plain_images:PLAIN\nbroken = plain_images:NONE\nwrong = plain_images:open_plain\n"
    (about / "entry_points.txt").write_text(f"[coarse2fine.formats]\n{points}", encoding="utf-8")
    monkeypatch.syspath_prepend(site)


def constant(value: int) -> Source:
    return array_source(np.full((9, 7), value, np.uint8))


def named(name: str, value: int, magic: bytes = b"") -> c2f.Format:
    return c2f.Format(name, lambda head, _: head.startswith(magic), lambda _: constant(value))


def first_pixel(path: Path) -> int:
    with c2f.open_image(path) as image:
        return int(image.read(Box(0, 0, 1, 1))[0, 0, 0])


@pytest.mark.usefixtures("installed")
def test_a_format_of_an_installed_package(
    tmp_path: Path, detector: Model, make_image: Callable[..., NDArray[np.uint8]], caplog: pytest.LogCaptureFixture
) -> None:
    scene = make_image(200, 170)
    np.save(tmp_path / "scene.npy", scene)
    with caplog.at_level(logging.WARNING):
        found = c2f.analyze(tmp_path / "scene.npy", detector)
    assert found.image.format == "plain"
    assert found.regions == c2f.analyze(scene, detector).regions
    assert expand_paths(tmp_path) == [tmp_path / "scene.npy"]
    told = [record.getMessage() for record in caplog.records if record.name == registry.__name__]
    assert [text.split()[2] for text in told] == ["broken", "wrong"]


def test_registered_formats_come_first_the_last_before_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.full((9, 7), 5, np.uint8))
    assert first_pixel(path) == 5
    c2f.register_format(named("first", 50))
    c2f.register_format(named("second", 60))
    assert first_pixel(path) == 60
    c2f.register_format(named("first", 70))
    assert first_pixel(path) == 70
    c2f.register_format(named("first", 80, b"\0\0"))
    assert first_pixel(path) == 60


def test_a_format_may_pass_a_file_on(tmp_path: Path) -> None:
    asked: list[Location] = []

    def declined(location: Location) -> None:
        asked.append(location)

    c2f.register_format(c2f.Format("picky", lambda _head, _location: True, declined))
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.full((9, 7), 5, np.uint8))[1].tobytes())
    assert first_pixel(tmp_path / "a.png") == 5
    (tmp_path / "folder").mkdir()
    with pytest.raises(c2f.ImageError, match="expected a Zarr directory"):
        c2f.open_image(tmp_path / "folder")
    assert [location.is_folder for location in asked] == [False, True]
    assert [location.path for location in asked] == [tmp_path / "a.png", tmp_path / "folder"]


def test_what_is_no_format_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a Format, got a str"):
        c2f.register_format("npy")  # type: ignore[arg-type]


def test_a_format_is_imported_when_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.zeros((9, 7), np.uint8))[1].tobytes())
    code = "import sys, coarse2fine; coarse2fine.open_image(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not {"tifffile", "openslide", "tensorstore"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((b"\x93NUMPY", lambda _: None), "needs two functions"),
        ((lambda *_: True, None), "needs two functions"),
        ((lambda *_: True, lambda _: None, ".npy"), r"needs a tuple of suffixes such as \('.npy',\), got '.npy'"),
        ((lambda *_: True, lambda _: None, (1,)), "needs a tuple of suffixes"),
    ],
)
def test_parts_of_a_format_are_checked(parts: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TypeError, match=f"the format plain {message}"):
        c2f.Format("plain", *parts)


def test_files_with_pixels_that_no_format_reads_are_told(tmp_path: Path) -> None:
    for name in ("a.png", "b.npy", "c.NPY", "d.czi", "labels.json", "notes.txt", ".hidden.npy"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match=r"left out 2 \.npy, 1 \.czi, which no known format reads") as told:
        assert expand_paths(tmp_path) == [tmp_path / "a.png"]
    assert len(told) == 1
    assert expand_paths(tmp_path, (".json",)) == [tmp_path / "labels.json"]
    assert expand_paths(tmp_path / "*.png") == [tmp_path / "a.png"]
    for suffix in (".npy", ".czi"):
        c2f.register_format(c2f.Format(suffix, lambda *_: False, lambda _: None, (suffix,)))
    assert len(expand_paths(tmp_path)) == 4
