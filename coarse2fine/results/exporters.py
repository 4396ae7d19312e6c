"""Exporters, which write an analysis into a file, by suffix: built-in, registered, or of other packages."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeAlias

Exporter: TypeAlias = Callable[[Path, Any], object]
"""Called with the path to write and the `Analysis`; the return value is ignored."""

GROUP = "coarse2fine.exporters"
"""Group of entry points of installed packages; the name of each is its suffix."""

# Methods of an analysis.
_BUILT_IN = {
    ".csv": "to_csv",
    ".geojson": "to_geojson",
    ".geojson.gz": "to_geojson",
    ".h5": "to_h5",
    ".json": "to_coco",
    ".json.gz": "to_coco",
    ".parquet": "to_parquet",
    ".pdf": "plot",
    ".png": "plot",
    ".svg": "plot",
    ".zarr": "to_ome_zarr",
}
_registered: dict[str, Exporter] = {}


def register_exporter(suffix: str, write: Exporter) -> None:
    """Let `Analysis.to` call a function for files with a given suffix, in this process.

    It takes precedence over exporters of installed packages (entry points of the group ``coarse2fine.exporters``, named
    by their suffix and loaded when such a file is written), and these over the built-in ones.

    Parameters
    ----------
    suffix : str
        Suffix with its dot, such as ``".kml"``; case does not matter. If several fit a name, the longest is taken.
    write : callable
        Called as ``write(path, analysis)`` with a `Path` and an `Analysis`.

    Raises
    ------
    ValueError
        If the suffix does not begin with a dot, or is only a dot.
    TypeError
        If `write` cannot be called.
    """
    if not callable(write):
        raise TypeError(f"expected a function write(path, analysis), got {write!r:.60}")
    if not suffix.startswith(".") or len(suffix) < 2:
        raise ValueError(f"expected the ending of a name such as '.kml', got {suffix!r}")
    _registered[suffix.lower()] = write


def exporter_for(path: Path) -> Exporter:
    """Exporter for a file's suffix; see `register_exporter`.

    Raises
    ------
    ValueError
        If there is none; the message lists the known suffixes.
    """
    installed = {point.name.lower(): point for point in entry_points(group=GROUP)}
    known = {*_registered, *installed, *_BUILT_IN}
    suffix = max(filter(path.name.lower().endswith, known), key=len, default=None)
    if suffix is None:
        raise ValueError(f"cannot write {path}: expected a name that ends in {', '.join(sorted(known))}")
    if suffix in _registered:
        return _registered[suffix]
    if suffix in installed:
        loaded: Exporter = installed[suffix].load()
        return loaded
    return lambda target, analysis: getattr(analysis, _BUILT_IN[suffix])(target)
