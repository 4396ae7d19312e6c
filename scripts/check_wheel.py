"""Build wheel and sdist, and use the wheel where there is no checkout: ``python scripts/check_wheel.py``.

By default the wheel is installed into a new environment that borrows its dependencies from this one, which takes half a
minute. ``--dependencies newest`` and ``--dependencies lowest`` install them from the package index, the latter in the
lowest versions that pyproject.toml allows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"tiling": "coarse2fine/tiling", "models": "coarse2fine/models"}
"""Packages that lie beside `coarse2fine` in a checkout, and their places in the wheel."""
COMMANDS = (
    ("--help",),
    ("models",),
    ("doctor",),
    ("info", "scene.png"),
    ("analyze", "scene.png", "-o", "out", "-m", "digits", "-q"),
    ("convert", "scene.png", "-o", "scene.zarr", "-q"),
)
SCENE = """
import cv2, numpy as np
pixels = np.random.default_rng(0).integers(100, 130, (512, 512), dtype=np.uint8)
for n in range(10):
    cv2.putText(pixels, str(n), (40 + 90 * (n % 5), 120 + 200 * (n // 5)), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 235, 4)
cv2.imwrite("scene.png", cv2.GaussianBlur(pixels, (0, 0), 1))
"""


def main() -> None:
    """Parse the command line, build, and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dependencies", choices=("here", "newest", "lowest"), default="here")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _run([sys.executable, "-m", "build", "--outdir", place / "dist", ROOT], ROOT)
        (wheel,), (sdist,) = (place / "dist").glob("*.whl"), (place / "dist").glob("*.tar.gz")
        check_wheel(zipfile.ZipFile(wheel).namelist())
        with tarfile.open(sdist) as archive:
            check_sdist(archive.getnames())
        python = install(wheel, place / "env", parsed.dependencies)
        use(python, place / "work")
    print(f"{wheel.name} and {sdist.name} hold what they should; the wheel works (dependencies: {parsed.dependencies})")


def source_files() -> set[str]:
    """Files of the packages in the checkout, by their names in the wheel."""
    listed = subprocess.run(["git", "ls-files", "-z", "coarse2fine", *PARTS], cwd=ROOT, capture_output=True, check=True)
    names = [name for name in listed.stdout.decode().split("\0") if name and not (ROOT / name).is_symlink()]
    return {PARTS.get(root, root) + f"/{rest}" for root, _, rest in (name.partition("/") for name in names)}


def check_wheel(names: Sequence[str]) -> None:
    """Compare a wheel's files with the checkout's: nothing is missing, and nothing else is there."""
    found = {name for name in names if ".dist-info/" not in name}
    assert found == source_files(), f"missing or extra: {sorted(found ^ source_files())}"


def check_sdist(names: Sequence[str]) -> None:
    """Check that an sdist holds the packages and no tests, scripts or documents."""
    inner = {name.partition("/")[2] for name in names}
    extra = [name for name in inner if name.partition("/")[0] in ("tests", "scripts", "docs")]
    assert not extra, f"extra: {sorted(extra)}"
    back = {place: part for part, place in PARTS.items()}
    for name in source_files():
        package = "/".join(name.split("/")[:2])
        assert name.replace(package, back.get(package, package), 1) in inner, f"missing: {name}"


def install(wheel: Path, env: Path, dependencies: str) -> Path:
    """Install a wheel into a new environment; returns the Python there."""
    venv.create(env, with_pip=True)
    python = env / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    more: list[str | Path] = []
    if dependencies == "here":
        (site,) = [path for path in env.rglob("site-packages") if path.is_dir()]
        # Folders named in a .pth file are searched, but their own .pth files, such as this checkout's, are not read.
        here = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (site / "dependencies.pth").write_text("\n".join(here), encoding="utf-8")
        more = ["--no-deps", "--no-index"]
    elif dependencies == "lowest":
        (env / "lowest.txt").write_text("\n".join(lowest()), encoding="utf-8")
        more = ["--constraint", env / "lowest.txt"]
    _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *more, wheel], env)
    return python


def lowest() -> list[str]:
    """The lowest version that pyproject.toml allows of each dependency, as constraints."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = []
    for text in project["dependencies"]:
        needed = Requirement(text)
        (bound,) = needed.specifier
        assert bound.operator == ">=", f"expected a lower bound alone, got {text}"
        found.append(f"{needed.name}=={bound.version}")
    return found


def use(python: Path, work: Path) -> None:
    """Run the commands in an empty folder, and look at what they wrote."""
    work.mkdir()
    place = _run([python, "-c", "import coarse2fine; print(coarse2fine.__file__)"], work).strip()
    assert Path(place).is_relative_to(python.parent.parent), f"expected the installed package, found {place}"
    _run([python, "-c", SCENE], work)
    for command in COMMANDS:
        _run([python.parent / "coarse2fine", *command], work)
    record = json.loads((work / "out" / "analysis.json").read_text("utf-8"))
    assert record["regions"] > 0, "expected digits to be found"
    assert (work / "out" / "report.html").is_file()


def _run(command: Sequence[str | Path], folder: Path) -> str:
    """Output of a command that must succeed, outside the checkout's packages."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
