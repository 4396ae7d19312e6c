"""Matching of annotation files with images."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from coarse2fine.annotations.annotated import AnnotationError, entry_of
from coarse2fine.annotations.files import images_in, load
from coarse2fine.paths import PathLike, expand_paths

# If files of several kinds bear an image's name, the first kind is taken.
_KINDS = ((".geojson", ".geojson.gz"), (".json", ".json.gz"), (".txt",))
_SUFFIXES = tuple(suffix for kind in _KINDS for suffix in kind)


def match_annotations(images: Sequence[Path], annotations: PathLike | Sequence[PathLike]) -> list[Path]:
    """Find the annotation file of each image by its name.

    ``huge.ome.tif`` pairs with ``huge.ome.tif.geojson`` or ``huge.ome.geojson``, or else with the file that
    shares its name up to the first dot, ``huge.geojson``, if no other image does. Without a ``.geojson``, a ``.json``
    or else a ``.txt`` is taken. An image without a file of its name pairs with the file of several images (COCO,
    Label Studio) that holds it. One image and one file given by its path pair whatever their names.

    Parameters
    ----------
    images : sequence of Path
        Image files.
    annotations : path-like or sequence of path-like
        A file, a folder, a glob, or a list of files: one for each image, or files that hold several images.

    Returns
    -------
    list of Path
        The annotation file of each of `images`, in their order.

    Raises
    ------
    AnnotationError
        If an image has no file or several, if two images share a file that holds a single image, or if a list has
        another length.

    Warns
    -----
    UserWarning
        If other files also bear an image's name or hold it: they are not read.
    """
    try:
        files = expand_paths(annotations, _SUFFIXES)
    except FileNotFoundError as error:
        raise AnnotationError(f"no annotations: {error}") from error
    listed = not isinstance(annotations, str | os.PathLike)
    if len(images) == len(files) == 1 and (listed or Path(str(annotations)).is_file()):
        return files
    found, owners = [], _Owners(files)
    for image, candidates in zip(images, _by_name(images, files), strict=True):
        path = owners.of(image, candidates)
        if path is None:
            if listed and len(files) != len(images) and not owners.shared:
                raise AnnotationError(
                    f"expected one annotation file for each image; got {len(files)} for {len(images)}"
                )
            names = ", ".join(map(str, candidates)) or "; ".join([f"none in {annotations}", *owners.unreadable[:1]])
            raise AnnotationError(
                f"expected one annotation file for the image {image}, named {_wanted(image, images)}.geojson; "
                f"found {names}"
            )
        found.append(path)
    if listed and len(files) != len(images) and not owners.shared:
        raise AnnotationError(f"expected one annotation file for each image; got {len(files)} for {len(images)}")
    _warn_of_others(images, found, files, owners.shared)
    return found


def _warn_of_others(
    images: Sequence[Path], found: Sequence[Path], files: Sequence[Path], shared: dict[Path, list[str]]
) -> None:
    """Warn of further files that bear an image's name or hold it: they are not read."""
    by_name, taken, same_stem = _grouped(files, _annotated_name), set(found), _grouped(images, _first_part)
    held = {path: {PurePosixPath(name.replace("\\", "/")).stem for name in names} for path, names in shared.items()}
    for image, path in zip(images, found, strict=True):
        names = [image.name, image.stem]
        names += [first] if len(same_stem[first := _first_part(image)]) == 1 else []
        others = [each for name in dict.fromkeys(names) for each in by_name.get(name, []) if each not in taken]
        others += [each for each, stems in held.items() if image.stem in stems and each != path]
        if others:
            text = ", ".join(map(str, dict.fromkeys(others)))
            warnings.warn(f"{image}: its annotations are read from {path}, not from {text}", stacklevel=3)


class _Owners:
    """Assignment of files to images: a file has one owner, unless it holds several images."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._owners: dict[Path, Path] = {}
        self._held: dict[Path, list[str] | None] = {}
        self.shared: dict[Path, list[str]] = {}
        self.unreadable: list[str] = []

    def of(self, image: Path, candidates: Sequence[Path]) -> Path | None:
        """The file of an image; None if there is none, or if there are several candidates."""
        if len(candidates) == 1 and candidates[0] not in self._owners:
            self._owners[candidates[0]] = image
            return candidates[0]
        if len(candidates) > 1:
            return None
        holding = [
            path for path, names in self._several().items() if entry_of(names, str(image), str(path)) is not None
        ]
        if len(holding) > 1:
            raise AnnotationError(
                f"the image {image} is held by {holding[0]} and by {holding[1]}; name the file that counts"
            )
        if not holding and candidates:
            raise AnnotationError(
                f"the images {self._owners[candidates[0]]} and {image} would share the annotation file "
                f"{candidates[0]}; name one file after each image"
            )
        return holding[0] if holding else None

    def _several(self) -> dict[Path, list[str]]:
        """Image names in each file that holds several; files are read once, when an image has none of its name."""
        if not self._held:
            for path in self._files:
                is_one = path in self._owners or not path.name.lower().endswith(_KINDS[1])
                self._held[path] = None if is_one else self._images_in(path)
            self.shared = {path: names for path, names in self._held.items() if names is not None}
        return self.shared

    def _images_in(self, path: Path) -> list[str] | None:
        try:
            return images_in(load(path))
        except AnnotationError as error:  # perhaps an unrelated file in the folder
            self.unreadable.append(str(error))
            return None


def _by_name(images: Sequence[Path], files: Sequence[Path]) -> list[list[Path]]:
    """Files that bear the name of each image."""
    by_name, by_stem = _grouped(files, _annotated_name), _grouped(files, _first_part)
    same_stem = _grouped(images, _first_part)
    found = []
    for image in images:
        named = by_name.get(image.name) or by_name.get(image.stem)
        if not named and len(same_stem[_first_part(image)]) == 1:
            named = by_stem.get(_first_part(image))
        found.append(_preferred(named or []))
    return found


def _preferred(files: list[Path]) -> list[Path]:
    for kind in _KINDS:
        if chosen := [path for path in files if path.name.lower().endswith(kind)]:
            return chosen
    return files


def _wanted(image: Path, images: Sequence[Path]) -> str:
    """Expected name without suffix: up to the first dot, if no other image shares that, else the stem."""
    alike = sum(_first_part(other) == _first_part(image) for other in images)
    return _first_part(image) if alike == 1 else image.stem


def _grouped(paths: Sequence[Path], key: Callable[[Path], str]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        groups[key(path)].append(path)
    return groups


def _first_part(path: Path) -> str:
    return path.name.split(".", 1)[0]


def _annotated_name(path: Path) -> str:
    """File name without the suffixes of annotations: ``a.tif`` for ``a.tif.geojson.gz``."""
    name = path.name.removesuffix(".gz")
    for suffix in (".geojson", ".json", ".txt"):
        name = name.removesuffix(suffix)
    return name
