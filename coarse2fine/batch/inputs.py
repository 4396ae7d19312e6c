"""Find images by files, folders, globs, lists and addresses, and name the folders of their results."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from coarse2fine.paths import PathLike, expand_paths, is_file
from coarse2fine.results.folder import ANALYSIS, MAPS, OVERVIEW, THUMBNAIL
from coarse2fine.steps.mask import MASK_SUFFIXES
from coarse2fine.tiling.storage.redact import identity, redact
from coarse2fine.tiling.storage.regular import read_regular
from coarse2fine.tiling.storage.remote import is_url

LISTS = (".txt", ".csv", ".tsv")
"""Suffixes of lists of images."""
# Characters that Windows does not allow in names.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
_COLUMNS = ("path", "mpp", "model")
_DELIMITERS = (",", "\t", ";")
_MOST_BYTES = 2**28
# Names of the batch's own files beside the folders of results.
_TAKEN = ("batch.json", "batch.csv", "report.html")


@dataclass(frozen=True)
class Item:
    """An image of a batch.

    Parameters
    ----------
    source : str
        Absolute path, or address.
    mpp : float, optional
        Microns per pixel, if the list has it.
    model : str, optional
        Model to use, if the list has it: a file or the name of an embedded one.
    name : str
        Name of its results' folder.
    mask : str, optional
        File of the area to analyse.
    """

    source: str
    mpp: float | None = None
    model: str | None = None
    name: str = ""
    mask: str | None = None


def find_items(sources: PathLike | Sequence[PathLike]) -> list[Item]:
    """Find the images of a batch.

    Parameters
    ----------
    sources : path, address or sequence of these
        Images, folders, globs (``**`` matches subfolders), addresses, and lists: text with one image per line, or
        CSV, separated by commas, semicolons or tabs, with the columns path and, optionally, mpp and model. Paths in
        a list are relative to its folder. Images in a list need not exist: they fail when they are opened.

    Returns
    -------
    list of Item
        In order, each image once; names are unique, also without regard to case.

    Raises
    ------
    FileNotFoundError
        If a source matches nothing.
    ValueError
        If a list cannot be read as one.
    """
    several = [sources] if isinstance(sources, str | os.PathLike) else sources
    if not several:
        raise FileNotFoundError("expected at least one image, folder, glob, list or address, got none")
    found = {item.source: item for source in several for item in _expand(source)}
    if not found:
        raise FileNotFoundError(f"{several[0]} contains only results; name images")
    return _named(list(found.values()))


def is_one_image(sources: Sequence[PathLike]) -> bool:
    """Whether the sources are a single image, not a folder, glob or list."""
    if len(sources) != 1:
        return False
    if is_url(sources[0]):
        return True
    path = Path(sources[0]).expanduser()
    return path.suffix.lower() not in LISTS and is_file(path)


def sharded(items: Sequence[Item], shard: tuple[int, int] | None) -> list[Item]:
    """Every N-th item from the I-th on, counted from 1, for shard (I, N); all items without a shard.

    Raises
    ------
    ValueError
        If there is no such shard.
    """
    if shard is None:
        return list(items)
    number, of = shard
    if not 1 <= number <= of:
        raise ValueError(f"expected a shard I/N with I from 1 to N, got {number}/{of}")
    return list(items[number - 1 :: of])


def with_masks(items: Sequence[Item], masks: PathLike) -> list[Item]:
    """Add to each item the mask with its name.

    Parameters
    ----------
    items : sequence of Item
    masks : path
        A folder or a glob; or one file, for all items.

    Raises
    ------
    FileNotFoundError
        If there is no mask for one of the items.
    """
    found = [path.absolute() for path in expand_paths(masks, MASK_SUFFIXES)]
    if len(found) == 1 and found[0] == Path(masks).expanduser().absolute():
        return [replace(item, mask=str(found[0])) for item in items]
    by_name = {path.name.removesuffix(".gz").rpartition(".")[0].casefold(): str(path) for path in found}
    without = [item.source for item in items if Path(_file_name(item.source)).stem.casefold() not in by_name]
    if without:
        raise FileNotFoundError(
            f"{masks} holds no mask named as {redact(without[0])}; masks of {len(without):,} image(s) are missing"
        )
    return [replace(item, mask=by_name[Path(_file_name(item.source)).stem.casefold()]) for item in items]


def _expand(source: PathLike) -> Iterator[Item]:
    if is_url(source):
        yield Item(str(source))
        return
    path = Path(source).expanduser()
    if path.suffix.lower() in LISTS and path.is_file():
        yield from _listed(path)
        return
    for found in expand_paths(path):
        if found == path or not _is_result(found):
            yield Item(str(found.absolute()))


def _is_result(path: Path) -> bool:
    """Whether a picture was written by an analysis; globs find such pictures if results lie among the images."""
    pictures = {OVERVIEW, THUMBNAIL, MAPS}
    return any(p.name in pictures and (p.parent / ANALYSIS).is_file() for p in (path, *path.parents))


def _listed(path: Path) -> Iterator[Item]:
    try:
        content = read_regular(path, _MOST_BYTES)
        # Windows programs may write UTF-16, with a byte order mark; without one it is UTF-8.
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a list in UTF-8 ({error}); save it again as such") from error
    if "\0" in text:
        raise ValueError(f"{path}: expected a list of images as text, found zeros in it")
    for where, row in _rows(path, text):
        model = row.get("model") or None
        beside = path.absolute().parent / model if model else None
        yield Item(
            row["path"] if is_url(row["path"]) else str(path.absolute().parent / Path(row["path"]).expanduser()),
            _number(row.get("mpp"), f"{path}: entry {where}"),
            str(beside) if beside is not None and beside.is_file() else model,
        )


def _rows(path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    """Entries with an image, counted from 1."""
    if path.suffix.lower() == ".txt":
        rows = [{"path": line.strip()} for line in text.split("\n") if line.strip() and line.strip()[0] != "#"]
    else:
        lines = text.splitlines()
        # Spreadsheets may state the delimiter; otherwise the header shows it: column names contain none.
        if lines and (said := re.fullmatch(r"sep=(.)", lines[0].strip())):
            delimiter, text = said[1], "\n".join(lines[1:])
        else:
            header = lines[0] if lines else ""
            delimiter = max(_DELIMITERS, key=header.count)
        try:
            table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
            table.fieldnames = [name.strip().lower() for name in table.fieldnames or ()]
            if "path" not in table.fieldnames:
                named = ", ".join(table.fieldnames) or "none"
                raise ValueError(f"{path}: expected a column named path, found {named}")
            rows = [{name: (row.get(name) or "").strip() for name in _COLUMNS} for row in table]
        except csv.Error as error:
            raise ValueError(f"{path}: expected a table as CSV ({error}); save it again as such") from error
        if delimiter == ";":  # such tables use decimal commas
            rows = [{**row, "mpp": row["mpp"].replace(",", ".")} for row in rows]
        rows = [row for row in rows if row["path"]]
    if not rows:
        raise ValueError(f"{path}: the list names no image")
    return list(enumerate(rows, 1))


def _number(text: str | None, where: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{where}: expected microns per pixel as a positive number, got {text!r}")
    return value


def _named(items: list[Item]) -> list[Item]:
    """Name items by file; names shared by several get a digest of the whole path."""
    names = [_file_name(item.source) for item in items]
    wholes = [identity(item.source) if is_url(item.source) else item.source for item in items]
    times = Counter(name.casefold() for name in (*names, *_TAKEN))
    return [
        replace(item, name=name if times[name.casefold()] == 1 else f"{name}-{_digest(whole)}")
        for item, name, whole in zip(items, names, wholes, strict=True)
    ]


def _file_name(source: str) -> str:
    last = source.partition("?")[0].rstrip("/").rpartition("/")[2] if is_url(source) else Path(source).name
    # Names that are not Unicode can be opened, but neither sent nor written as text.
    name = _FORBIDDEN.sub("_", last.encode("utf-8", "replace").decode()).rstrip(" .") or "image"
    return f"_{name}" if name.startswith(".") else name


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
