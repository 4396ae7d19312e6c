"""Expansion of files, folders and globs to lists of files."""

from __future__ import annotations

import glob
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from coarse2fine.tiling.formats.registry import known_formats

PathLike = str | os.PathLike[str]

_ALSO_PIXELS = (
    *(".npy", ".npz", ".h5", ".hdf5", ".mat", ".nii", ".fits"),
    *(".czi", ".nd2", ".lif", ".oib", ".vsi", ".ims", ".gif", ".heic", ".psd", ".dng", ".ecw"),
)
"""Suffixes of files that hold pixels too, and that no built-in format reads."""


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

    Warns
    -----
    UserWarning
        If images are left out of a folder because no known format reads files with their suffix.
    """
    sources = [source] if isinstance(source, str | os.PathLike) else source
    if not sources:
        raise FileNotFoundError("expected at least one file, folder or glob, found an empty list")
    if images := suffixes is None:
        suffixes = image_suffixes()
    paths = [Path(each).expanduser() for each in sources]
    found = sorted({path for each in paths for path in _expand_one(each, suffixes)})
    for folder in paths if images else ():
        _warn_of_others(folder, suffixes)
    return found


def image_suffixes() -> tuple[str, ...]:
    """Name endings of all known formats, in lower case."""
    return tuple(suffix for fmt in known_formats() for suffix in fmt.suffixes)


def _expand_one(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if is_file(path):  # before the glob: a name may hold brackets
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
    found = [match for match in matches if is_file(match)]
    # The chunks inside a Zarr folder are part of that image.
    stores = {match for match in found if match.is_dir()}
    found = [match for match in found if stores.isdisjoint(match.parents)]
    if not found:
        raise FileNotFoundError(f"no file matches {path}; check the pattern")
    return found


def _warn_of_others(folder: Path, suffixes: tuple[str, ...]) -> None:
    """Warn of files in a folder of images that hold pixels and are left out."""
    if not folder.is_dir() or is_file(folder):
        return
    left = Counter(child.suffix.lower() for child in folder.iterdir() if child.name[0] != ".")
    others = {suffix: left[suffix] for suffix in _ALSO_PIXELS if left[suffix] and suffix not in suffixes}
    if others:
        counts = ", ".join(f"{count:,} {suffix}" for suffix, count in others.items())
        warnings.warn(
            f"{folder}: left out {counts}, which no known format reads; convert them to TIFF or Zarr, or add a format "
            "(coarse2fine.register_format)",
            stacklevel=3,
        )


def is_file(path: Path) -> bool:
    """Whether there is a file, or a Zarr folder, which counts as one."""
    zarr = path.is_dir() and (path.suffix == ".zarr" or any((path / n).is_file() for n in ("zarr.json", ".zgroup")))
    return zarr or path.is_file()
