"""The house rules that tools do not hold."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import floors
import pytest
from floors import FLOORS, PARTS, imported

import coarse2fine
import coarse2fine.bench.audit  # registers its checkpoint as a subclass
from coarse2fine.steps.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted(p for p in (ROOT / "coarse2fine").rglob("*.py") if not set(PARTS) & set(p.relative_to(ROOT).parts))
INNER = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
FILES = [*CORE, *INNER, *SCRIPTS]
PIXELS = {"numpy", "cv2", "zarr", "numcodecs", "dask", "tifffile", "imagecodecs", "platformdirs", "filelock"}
EXTRAS = {"aiohttp", "fsspec", "openslide", "tensorstore"}
TENSORS = {"cv2", "numpy", "torch", "timm", "scipy", "safetensors"}


def roots(path: Path) -> set[str]:
    """Third-party packages."""
    found = {name.partition(".")[0] for name, level in imported(path) if not level}
    return found - set(sys.stdlib_module_names)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def modules(path: Path) -> Iterator[str]:
    """Full names of what a file imports, relative imports resolved."""
    parts = list(path.relative_to(ROOT).parent.parts)
    for name, level in imported(path):
        yield ".".join([*parts[: len(parts) - level + 1], name]) if level else name


@pytest.mark.parametrize("path", [p for p in INNER if p.is_relative_to(ROOT / "tiling")], ids=name_of)
def test_tiling_knows_pixels_only(path: Path) -> None:
    assert roots(path) <= PIXELS | EXTRAS
    assert all(name.startswith("tiling") for name, level in zip(modules(path), imported(path), strict=True) if level[1])


@pytest.mark.parametrize("path", [p for p in INNER if p.is_relative_to(ROOT / "models")], ids=name_of)
def test_models_know_tensors_only(path: Path) -> None:
    assert roots(path) <= TENSORS
    assert all(level <= 1 for _, level in imported(path))
    assert not {name for name, _ in imported(path)} & {"os", "pathlib", "json", "io"}


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_files_import_from_lower_floors(path: Path) -> None:
    assert not roots(path) & {"scripts", "tests", "tiling", "models", "benchmarks"}
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    room = floors.room_of(path.relative_to(ROOT).parts)
    for _, other in floors.imports_between({room: [path]}):
        assert floor[other] < floor[room], f"{room} imports {other}"


def test_picture_of_the_floors_is_current() -> None:
    picture = (ROOT / "docs" / "architecture.svg").read_text("utf-8")
    assert picture == floors.draw(ROOT), "draw it again: python scripts/floors.py --draw docs/architecture.svg"


def test_the_core_has_no_import_cycle() -> None:
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in CORE if path.stem != "__init__"}
    graph = {name: {n for n, _ in imported(path)} & set(names.values()) for path, name in names.items()}
    while graph:
        leaves = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"these modules import each other: {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in leaves}


def test_every_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in CORE}
    parts = {".".join(("coarse2fine", *path.parent.relative_to(ROOT).parts)) for path in INNER}
    assert set(project["tool"]["setuptools"]["packages"]) == folders | parts


def test_every_third_party_package_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    declared = {text.partition(">=")[0].partition("[")[0].lower() for text in (*project["dependencies"], *extras)}
    declared |= {"aiohttp"}  # of fsspec[http]
    known_as = {
        "cv2": "opencv-python",
        "openslide": "openslide-python",
        "skimage": "scikit-image",
        "sklearn": "scikit-learn",
    }
    used = {root for path in FILES for root in roots(path)} - {"coarse2fine", "benchmarks", "documents"}
    # Of numcodecs, an extra that our shards need: zarr has it too, but may leave it.
    used |= {"google-crc32c"} if any("numcodecs.checksum32" in dict(imported(path)) for path in FILES) else set()
    assert {known_as.get(name, name) for name in used} <= declared


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            explained = len((ast.get_docstring(node, clean=False) or "").splitlines())
            assert node.end_lineno - node.lineno + 1 - explained <= 60, node.name


def test_public_names() -> None:
    assert coarse2fine.__all__ == sorted(coarse2fine.__all__)
    assert {*coarse2fine._HOMES, "__version__"} == set(coarse2fine.__all__)
    for name in coarse2fine.__all__:
        assert name == "__version__" or getattr(coarse2fine, name).__doc__


@pytest.mark.parametrize(
    "call", ["import coarse2fine", "main(['--help'])", "main(['analyze'])", "main(['fit', '--help'])"]
)
def test_start_is_light(call: str) -> None:
    code = f"""
import contextlib, sys
from coarse2fine.cli.main import main
with contextlib.suppress(SystemExit), contextlib.redirect_stderr(None):
    {call}
print(*sys.modules, file=sys.stderr)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    third = {name.partition(".")[0] for name in found.stderr.split()} - set(sys.stdlib_module_names)
    # The rest belongs to the installation: finders of packages that are installed in place, and the like.
    assert {name for name in third if not name.startswith(("_", "site", "distutils"))} == {"coarse2fine"}


def test_checkpoints_override_what_an_analysis_calls() -> None:
    """A method renamed in the base class must be renamed in its subclasses, or a look-up is silently not used."""
    known = set(vars(Checkpoint))
    for each in Checkpoint.__subclasses__():
        own = {name for name, value in vars(each).items() if callable(value) and not name.startswith("_")}
        assert own
        assert own <= known, each
