"""``coarse2fine view IMAGE``: which file holds the annotations, and the page until Ctrl-C."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shapely.geometry import mapping

from coarse2fine.annotate.server import AnnotateServer
from coarse2fine.annotate.store import AnnotationStore, Feature, in_pixels, new_feature
from coarse2fine.annotations.annotated import IGNORE, REGION, AnnotationError
from coarse2fine.annotations.files import load
from coarse2fine.annotations.read import read_annotations
from coarse2fine.results.colours import label_colour
from coarse2fine.terminal import say
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image

_ENDINGS = (".geojson", ".geojson.gz", ".json")


def serve_image(
    image: str | os.PathLike[str],
    *,
    classes: Sequence[str] = (),
    annotations: str | os.PathLike[str] | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    open_browser: bool = True,
) -> None:
    """Annotate an image in the browser until Ctrl-C; every change is saved at once.

    Parameters
    ----------
    image : path or address
    classes : sequence of str
        Classes to offer, besides those in the file.
    annotations : path, optional
        GeoJSON file to open and save; by default named as the image, beside it. Of any other format that
        `coarse2fine.annotations.read` reads, a copy is saved in that file, which must not exist yet.
    host : str
        Address to listen at; by default only this machine can connect. There is no password: access needs the printed
        address, which cannot be guessed.
    port : int
        0 for any that is free.
    open_browser : bool

    Raises
    ------
    AnnotationError
        If the annotations cannot be read.
    ImageError
        If the image cannot be opened.
    OSError
        If the annotations' folder cannot be written, or the port is taken.
    ValueError
        If a class is empty or there is no such port.
    """
    if any(not name.strip() for name in classes):
        raise ValueError("a class needs a name, got an empty one")
    with open_image(image) as opened:
        store = open_store(opened, None if annotations is None else Path(annotations))
        with AnnotateServer(opened, store, classes, host, port) as server:
            say(f"{opened.name} can be annotated at {server.url} (Ctrl-C to end)")
            say(f"annotations are saved in {store.path}")
            server.run(open_browser=open_browser)


def open_store(image: Image, annotations: Path | None) -> AnnotationStore:
    """The file of an image's annotations; see `serve_image` for the parameters and errors."""
    beside = None if image.path is None else _beside(image.path)
    path = annotations or beside
    if path is None:
        raise AnnotationError("an image at an address has no folder for annotations; name a file by --annotations")
    existing = path.exists()
    if not existing and not path.name.lower().endswith(_ENDINGS):
        raise AnnotationError(f"there is no {path}; the name of a new file must end in .geojson")
    copied: list[Feature] = []
    if existing and not in_pixels(load(path).payload):
        copied = _converted(path, image)
        if beside is None or beside == path or beside.exists():
            raise AnnotationError(
                f"{path} is not GeoJSON in pixels, and annotations cannot be saved there; name another file by "
                "--annotations, or convert it"
            )
        path = beside
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"no permission to write into {path.parent}; name a file elsewhere by --annotations")
    store = AnnotationStore(path)
    if copied:
        store.change(store.revision, copied, ())
    return store


def _beside(image: Path) -> Path:
    """Name of the annotations of an image: an existing file of its full or short name, else a new one."""
    names = [f"{stem}{ending}" for stem in (image.name, image.stem) for ending in (".geojson", ".geojson.gz")]
    found = next((path for name in names if (path := image.with_name(name)).exists()), None)
    return found or image.with_name(f"{image.stem}.geojson")


def _converted(path: Path, image: Image) -> list[Feature]:
    name = None if image.path is None else str(image.path)
    read = read_annotations(path, full_shape=(image.height, image.width), image=name, geo=image.geo)
    for note in read.notes:
        say(note)
    objects = [(each.label, each.geometry, each.measurements) for each in read.objects]
    areas: list[tuple[str, Any, dict[str, float]]] = [(IGNORE, area, {}) for area in read.ignored]
    areas += [(REGION, area, {}) for area in read.regions]
    return [
        new_feature(
            json.loads(json.dumps(mapping(geometry))),
            label,
            label_colour(label),
            {"measurements": measurements} if measurements else {},
        )
        for label, geometry, measurements in [*objects, *areas]
    ]
