"""Code in the documents runs as it stands; what needs a package that is missing, or things of a reader, compiles."""

from __future__ import annotations

import inspect
import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

import coarse2fine as c2f
from coarse2fine.cli.main import make_parser
from tests.docs.pages import PAGES, blocks, names

# Other tests run these pages in processes of their own: what they register would stay.
_ELSEWHERE = ("extending.md", "experts.md")
IN_PROCESS = tuple(page for page in PAGES if page.name not in _ELSEWHERE and blocks(page, "python"))
_FILES = ("huge.svs", "scene.tif", "other.tif", "scenes/a.tif", "scenes/b.tif", "slides/a.tif", "slides/b.tif")


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, make_image: Callable[..., NDArray[np.uint8]], detector: c2f.Model
) -> Path:
    """The files that pages name: images, annotations, models and a result."""
    folder = tmp_path_factory.mktemp("files")
    box = [[[40, 40], [60, 40], [60, 60], [40, 60], [40, 40]]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": box}, "properties": {}}
    for seed, name in enumerate(_FILES):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, make_image(192, 256, seed=seed), tile=(64, 64), photometric="rgb", compression="zlib")
        path.with_suffix(".geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    for name in ("boards.c2f", "scene-1.fit/model.c2f"):
        (folder / name).parent.mkdir(exist_ok=True)
        detector.save(folder / name)
    with c2f.analyze(folder / "scene.tif", detector, progress=False) as analysis:
        analysis.save(folder / "out")
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", IN_PROCESS, ids=names(IN_PROCESS))
def test_blocks_of_a_page_run_in_turn(
    page: Path, files: Path, detector: c2f.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, folder = c2f.fit, tmp_path / "here"

    def fit_nothing(*given: Any, **options: Any) -> c2f.Model:
        """Check names as `fit` does; other tests fit."""
        inspect.signature(fit).bind(*given, **options)
        return replace(detector, provenance={"specialists": {}})

    shutil.copytree(files, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(c2f, "fit", fit_nothing)
    monkeypatch.setattr(c2f, "analyze_folder", partial(c2f.analyze_folder, workers=0))
    mpl.use("agg")
    with c2f.open_image("scene.tif") as image, c2f.analyze("scene.tif", detector, progress=False) as analysis:
        box = c2f.tiling.geometry.Box(0, 0, 64, 64)
        space = {"c2f": c2f, "model": detector, "a": analysis, "image": image, "box": box, "level": 0}
        for block in blocks(page, "python"):
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            if block.runs:
                exec(code, space)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_code_without_a_language_is_no_python(page: Path) -> None:
    assert [block.line for block in blocks(page, "") if "c2f." in block.code and "coarse2fine" not in block.code] == []


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_commands_have_options_that_exist(page: Path) -> None:
    for block in (*blocks(page, ""), *blocks(page, "bash")):
        for line in block.code.splitlines():
            if line.startswith("coarse2fine "):
                given = shell_words(line)[1:]
                make_parser().parse_args(given)


def shell_words(line: str) -> list[str]:
    """Words of a command without its comment."""
    return shlex.split(line, comments=True)
