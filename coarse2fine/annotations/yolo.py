"""Annotations as YOLO text: a file for each image, with the class names beside it."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

from coarse2fine.annotations.annotated import AnnotationError, Draft, Parsed, Stray, StrayError, label_of
from coarse2fine.annotations.polygons import polygon_of
from coarse2fine.tiling.storage.regular import read_regular

# Boxes drawn up to the border may end a little beyond it, by rounding.
_BEYOND = 0.02
_MOST_CLASSES = 1_000_000
_MOST_BYTES = 2**20
_LISTS = ("classes.txt", "obj.names", "data.yaml", "dataset.yaml")
# Folders searched for class names: labels/train/ and two above, up to that of the data set.
_LEVELS = 3
_NAMED = 5


def parse_yolo(text: str, full_shape: tuple[int, int] | None, classes: dict[int, str], name: str) -> Parsed | None:
    """Annotations from YOLO text: a line for each object, with class and box or outline as shares of the image.

    Parameters
    ----------
    text : str
    full_shape : tuple of int or None
    classes : dict of int to str
        Names of classes; the others are named by their number.
    name : str
        Name of the file, for messages.

    Returns
    -------
    Parsed or None
        None if no line consists of numbers.

    Raises
    ------
    AnnotationError
        If the size of the image is not known.
    """
    rows = {number: _numbers(line) for number, line in enumerate(text.splitlines(), 1) if line.strip()}
    if rows and all(row is None for row in rows.values()):
        return None
    if rows and full_shape is None:
        raise AnnotationError(f"{name} has shares of an image: expected its size, full_shape")
    found = Parsed([], [])
    unnamed: Counter[int] = Counter()
    for number, row in rows.items():
        place = f"line {number}"
        try:
            found.drafts.append(_of_yolo(row, place, full_shape or (1, 1), classes))
        except StrayError as error:
            found.strays.append(Stray(place, str(error)))
            continue
        if classes and row is not None and int(row[0]) not in classes:
            unnamed[int(row[0])] += 1
    return found._replace(notes=_of_unnamed(unnamed, len(found.drafts), name))


def _numbers(line: str) -> list[float] | None:
    """Numbers of a line; None if one of its words is not a number."""
    try:
        return [float(word) for word in line.split()]
    except ValueError:
        return None


def _of_unnamed(unnamed: Counter[int], total: int, name: str) -> tuple[str, ...]:
    """A note if the list of names beside the file lacks classes."""
    if not unnamed:
        return ()
    numbers = ", ".join(map(str, sorted(unnamed)[:_NAMED])) + (" and more" if len(unnamed) > _NAMED else "")
    return (
        f"{name}: {unnamed.total():,} of {total:,} are of classes that the list of names beside it does not have "
        f"({numbers}); these classes are named by their numbers",
    )


def _of_yolo(row: list[float] | None, place: str, full_shape: tuple[int, int], classes: dict[int, str]) -> Draft:
    box_like = row is not None and len(row) in (5, 6)  # the sixth is a score
    if row is None or not all(map(math.isfinite, row)) or not (box_like or (len(row) >= 7 and len(row) % 2)):
        raise StrayError("is not: class x y width height, nor: class x1 y1 x2 y2 x3 y3 ...")
    if not 0 <= row[0] < _MOST_CLASSES or row[0] % 1:
        raise StrayError(f"begins with {row[0]:g}, expected the number of a class")
    shares = row[1:5] if box_like else row[1:]
    if min(shares) < -_BEYOND or max(shares) > 1 + _BEYOND:
        raise StrayError("has a place outside 0 to 1, expected shares of the image's width and height")
    height, width = full_shape
    if box_like:
        x, y, w, h = shares
        corners = [(x - w / 2, y - h / 2), (x - w / 2, y + h / 2), (x + w / 2, y + h / 2), (x + w / 2, y - h / 2)]
    else:
        corners = list(zip(shares[::2], shares[1::2], strict=True))
    score = {"score": row[5]} if len(row) == 6 else {}
    label = classes.get(int(row[0]), str(int(row[0])))
    return Draft(place, label, polygon_of([(x * width, y * height) for x, y in corners]), score)


def yolo_classes(path: Path) -> dict[int, str]:
    """Class names by number, from ``classes.txt`` or ``data.yaml`` beside a file or in the two folders above.

    Parameters
    ----------
    path : Path
        YOLO text of an image.

    Returns
    -------
    dict of int to str
        Empty if there is no such file.

    Raises
    ------
    AnnotationError
        If the list of names cannot be read.
    """
    for folder in list(path.absolute().parents)[:_LEVELS]:
        for name in _LISTS:
            found = folder / name
            if found.is_file() and found != path.absolute():
                return _read_classes(found)
    return {}


def _read_classes(path: Path) -> dict[int, str]:
    try:
        text = read_regular(path, _MOST_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f"cannot read the names of classes: {path}: {error}") from error
    lines = text.splitlines()
    names = _yaml_names(lines) if path.suffix == ".yaml" else dict(enumerate(line.strip() for line in lines))
    labels = {number: label_of(name) for number, name in names.items()}
    return {number: label for number, label in labels.items() if label}


def _yaml_names(lines: list[str]) -> dict[int, str]:
    """The entry "names" of YOLO's YAML: [a, b], {0: a, 1: b}, or a line for each class, numbered or not."""
    start = next((i for i, line in enumerate(lines) if re.match(r"names\s*:", line)), None)
    if start is None:
        return {}
    first = lines[start].partition(":")[2].partition("#")[0].strip()
    if first:
        inside = " ".join([first, *lines[start + 1 :]]).strip("[{ ").partition("]" if first[0] == "[" else "}")[0]
        words = [word.strip() for word in inside.split(",")]
    else:
        words = []
        for line in lines[start + 1 :]:
            if line.strip() and not re.match(r"\s*-|\s+\S|\s*#", line):
                break  # the next entry
            if word := line.partition(" #")[0].strip().removeprefix("-").strip():
                words.append(word)
    names: dict[int, str] = {}
    for position, word in enumerate(word for word in words if word and word[0] != "#"):
        number = re.match(r"(\d{1,6})\s*:\s*(.*)", word)
        key, name = (int(number[1]), number[2]) if number else (position, word)
        names[key] = name.strip("\"'")
    return names
