"""Exporters: what writes an analysis into a file, by the ending of its name; own ones and those of other packages."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeAlias

Exporter: TypeAlias = Callable[[Path, Any], object]
"""Called with the path to write and the `Analysis`; what it returns is ignored."""

GROUP = "coarse2fine.exporters"
"""Entry points of installed packages, each named as its suffix."""

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
    """Make `Analysis.to` write files of a suffix by a function of yours, in this process.

    It is taken before exporters of installed packages (entry points of the group ``coarse2fine.exporters``, each named
    as its suffix and loaded when a file of that suffix is written), and those before the built-in ones.

    Parameters
    ----------
    suffix : str
        Ending of a file's name with its dot, such as ``".kml"``; letters of either case are the same. Where several
        fit a name, the longest is taken.
    write : callable
        Called as ``write(path, analysis)`` with a `Path` and an `Analysis`.

    Raises
    ------
    ValueError
        If the suffix does not begin with a dot, or is nothing else.
    """
    if not suffix.startswith(".") or len(suffix) < 2:
        raise ValueError(f"expected the ending of a name such as '.kml', got {suffix!r}")
    _registered[suffix.lower()] = write


def exporter_for(path: Path) -> Exporter:
    """The exporter of a file's name; see `register_exporter`.

    Raises
    ------
    ValueError
        If there is none; the message lists the suffixes that are known.
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
