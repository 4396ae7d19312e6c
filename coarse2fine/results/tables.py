"""Table of a plan's windows, one row each, as Parquet and CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coarse2fine.models.firing import FIRED, NO_FEATURE, feature_name
from coarse2fine.region import Region
from coarse2fine.results.json_file import csv_cell
from coarse2fine.steps.plan import Plan
from coarse2fine.tiling.errors import MissingExtraError
from coarse2fine.tiling.summed_area import rectangle_sums, summed_area
from coarse2fine.tiling.writing.atomic import replacing

if TYPE_CHECKING:
    import pandas as pd

_SEPARATOR = "; "

Table: TypeAlias = Mapping[str, NDArray[Any]]
"""Columns of equal length by name; text columns have dtype object."""


def tiles_table(
    plan: Plan, cell: int, full_shape: tuple[int, int], refined: NDArray[np.bool_], regions: Sequence[Region]
) -> Table:
    """Table of a plan's windows, best first.

    Parameters
    ----------
    plan : Plan
    cell : int
        Side of a cell in full-resolution pixels.
    full_shape : tuple of int
        Height and width of the image.
    refined : ndarray, bool, (cell height, cell width)
    regions : sequence of Region

    Returns
    -------
    Table
        Columns ``full_y0``, ``full_x0``, ``full_y1``, ``full_x1`` (int64, pixels inside the image, half-open),
        ``height`` and ``width`` (int64, in cells), ``score`` (float32, expected finds), ``fired`` (str, the features
        that fired, strongest first), ``refined`` (bool) and ``finds`` (int64, regions whose centre lies in the window).
    """
    low = plan.cell_corners
    high = np.minimum(low + plan.sides, np.array(plan.cell_shape))
    full_high = np.minimum(high * cell, np.array(full_shape))
    finds = _centres(regions, cell, plan.cell_shape)
    return {
        "full_y0": low[:, 0] * cell,
        "full_x0": low[:, 1] * cell,
        "full_y1": full_high[:, 0],
        "full_x1": full_high[:, 1],
        "height": plan.sides[:, 0],
        "width": plan.sides[:, 1],
        "score": plan.scores,
        "fired": np.array(_names(plan), object),
        "refined": rectangle_sums(summed_area(~refined), low, high) == 0,
        "finds": rectangle_sums(summed_area(finds), low, high).astype(np.int64),
    }


def as_frame(table: Table) -> pd.DataFrame:
    """A table as a DataFrame.

    Raises
    ------
    MissingExtraError
        If pandas is not installed (extra ``pandas``).
    """
    try:
        import pandas as pd  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingExtraError("pandas", "a DataFrame", "pandas") from error
    return pd.DataFrame({name: pd.Series(c, dtype="str") if c.dtype == object else c for name, c in table.items()})


def write_parquet(path: str | os.PathLike[str], table: Table) -> Path:
    """Write a table as Parquet; an existing file is replaced once the new one is complete."""
    import pyarrow as pa  # noqa: PLC0415 (slow to import)
    import pyarrow.parquet as pq  # noqa: PLC0415

    target = Path(path)
    arrays = {n: pa.array(column, pa.large_string() if column.dtype == object else None) for n, column in table.items()}
    with replacing(target) as temporary:
        pq.write_table(pa.table(arrays), temporary, compression="zstd")
    return target


def write_csv(path: str | os.PathLike[str], table: Table) -> Path:
    """Write a table as CSV in UTF-8; an existing file is replaced once the new one is complete."""
    target = Path(path)
    # `astype` keeps as many digits as a score's precision has.
    columns = [map(csv_cell, c) if c.dtype == object else c.astype(str).tolist() for c in table.values()]
    with replacing(target) as temporary, temporary.open("x", encoding="utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(table)
        writer.writerows(zip(*columns, strict=True))
    return target


def read_plan(path: str | os.PathLike[str], cell: int, cell_shape: tuple[int, int], *, scanned: bool) -> Plan:
    """Read a plan back from the table that `write_parquet` wrote.

    Parameters
    ----------
    path : path-like
    cell : int
        Side of a cell in full-resolution pixels.
    cell_shape : tuple of int
    scanned : bool
        Whether a scan recorded which features fired.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415 (slow to import)

    # Results of earlier versions hold squares, with one column for their sides.
    shape = ("side", "side") if "side" in pq.read_schema(path).names else ("height", "width")
    table = pq.read_table(path, columns=[*dict.fromkeys(("full_y0", "full_x0", *shape, "score", "fired"))])
    y, x, height, width, scores = (table.column(name).to_numpy() for name in ("full_y0", "full_x0", *shape, "score"))
    corners, sides = (np.stack(pair, axis=1).astype(np.int64) for pair in ((y, x), (height, width)))
    fired = _features(table.column("fired").to_pylist()) if scanned else None
    return Plan(corners // cell, sides, scores.astype(np.float32), cell_shape, fired)


def _names(plan: Plan) -> list[str]:
    """Names of the features that fired in each window; joined once per combination."""
    if plan.fired is None or not len(plan):
        return [""] * len(plan)
    rows, which = np.unique(plan.fired, axis=0, return_inverse=True)
    names = [_SEPARATOR.join(feature_name(f) for f in row if f != NO_FEATURE) for row in rows.tolist()]
    return [names[i] for i in which.ravel().tolist()]


def _features(names: Sequence[str]) -> NDArray[np.uint8]:
    """Numbers of named features, (n, 3); 255 for none."""
    number = {feature_name(f): f for f in range(NO_FEATURE)}
    fired = np.full((len(names), FIRED), NO_FEATURE, np.uint8)
    rows = {text: [number[name] for name in text.split(_SEPARATOR) if name] for text in set(names)}
    for row, text in enumerate(names):
        fired[row, : len(rows[text])] = rows[text]
    return fired


def _centres(regions: Sequence[Region], cell: int, cell_shape: tuple[int, int]) -> NDArray[np.int32]:
    """Number of regions with their centre in each cell."""
    counts = np.zeros(cell_shape, np.int32)
    if regions:
        centres = np.array([region.full_centre for region in regions]) // cell
        y, x = np.clip(centres.astype(np.int64), 0, np.array(cell_shape) - 1).T
        np.add.at(counts, (y, x), 1)
    return counts
