"""Expansion of files, folders and globs to lists of files."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from coarse2fine.tiling.formats.registry import known_formats

PathLike = str | os.PathLike[str]


def expand_paths(source: PathLike | Sequence[PathLike], suffixes: tuple[str, ...] | None = None) -> list[Path]:
    """Find files, by default images.

    Parameters
    ----------
    source : path-like or sequence of path-like
        A file, a folder (the files directly inside), a glob (``**`` matches nested folders), or several of
        these. A Zarr folder counts as a file.
    suffixes : tuple of str, optional
        Name endings, in lower case, that are taken from a folder; by default those of all known formats.

    Returns
    -------
    list of Path
        Sorted, each file once.

    Raises
    ------
    FileNotFoundError
        If a source matches no file.
    """
    sources = [source] if isinstance(source, str | os.PathLike) else source
    if not sources:
        raise FileNotFoundError("expected at least one file, folder or glob, found an empty list")
    if suffixes is None:
        suffixes = tuple(suffix for fmt in known_formats() for suffix in fmt.suffixes)
    return sorted({path for each in sources for path in _expand_one(Path(each).expanduser(), suffixes)})


def _expand_one(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if path.is_file() or _is_zarr(path):  # before the glob: a name may hold brackets
        return [path]
    if path.is_dir():
        found = [child for child in path.iterdir() if child.name.lower().endswith(suffixes) and child.name[0] != "."]
        if not found:
            raise FileNotFoundError(f"the folder {path} holds no file ending in {', '.join(suffixes)}")
        return found
    if not glob.has_magic(str(path)):
        raise FileNotFoundError(f"there is no file or folder {path}; check the name")
    # Not Path.glob: its ** differs between versions of Python.
    matches = {Path(match) for match in glob.iglob(str(path), recursive=True)}  # noqa: PTH207
    found = [match for match in matches if match.is_file() or _is_zarr(match)]
    # The chunks inside a Zarr folder are part of that image.
    stores = {match for match in found if match.is_dir()}
    found = [match for match in found if stores.isdisjoint(match.parents)]
    if not found:
        raise FileNotFoundError(f"no file matches {path}; check the pattern")
    return found


def _is_zarr(path: Path) -> bool:
    return path.is_dir() and (path.suffix == ".zarr" or any((path / n).is_file() for n in ("zarr.json", ".zgroup")))
