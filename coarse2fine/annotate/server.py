"""Local web server of the page that annotates an image."""

from __future__ import annotations

import json
import math
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, ClassVar, NamedTuple

from coarse2fine.annotate.brush import painted
from coarse2fine.annotate.finds import Fitted, done_areas
from coarse2fine.annotate.fit_job import BusyError, FitJob
from coarse2fine.annotate.store import AnnotationStore, Feature, StaleError, is_rejected, label_in
from coarse2fine.annotate.suggest import suggest
from coarse2fine.annotate.training import object_side, training_annotations
from coarse2fine.annotations.annotated import IGNORE, REGION
from coarse2fine.annotations.polygons import as_geometry
from coarse2fine.annotations.read import read_annotations
from coarse2fine.report.local_server import CSS, HTML, JSON, OPENSEADRAGON, SCRIPT, LocalHandler, LocalServer
from coarse2fine.report.viewer_tiles import CLOSER, OVERLAP, TILE, ImageTiles
from coarse2fine.results.colours import label_colour
from coarse2fine.tiling.image import Image

TOKEN = "X-Coarse2fine-Token"  # noqa: S105 (a header's name)
"""Header without which nothing is changed: another site's page cannot send it without being asked for permission."""
MOST_BYTES = 16 * 2**20
STEPS = (20, 10_000)
_SCRIPTS = ("annotate", "annotate-state", "annotate-canvas", "annotate-tools", "annotate-model")
_TILE_PATH = re.compile(r"/tiles/(image|interest)/(\d{1,3})/(\d{1,7})/(\d{1,7})")
_DRAWN_AT_ONCE = 4
_MOST_PLACES = 50
_PLACE_OBJECTS = 6
_PLACE_SIDES = (96, 512)
_LONGEST_LABEL = 200


class AnnotateServer(LocalServer):
    """Server of one image to annotate; a context manager.

    Parameters
    ----------
    image : Image
        Stays open.
    store : AnnotationStore
        A fitted model and its result are put beside its file, in a folder of the same name that ends in ``.fit``.
    classes : sequence of str
        Classes to offer, besides those in the file.
    host : str
    port : int
        0 for any that is free.
    """

    def __init__(self, image: Image, store: AnnotationStore, classes: Sequence[str], host: str, port: int) -> None:
        super().__init__(_Handler, host, port)
        self.image, self.store, self.classes = image, store, tuple(dict.fromkeys(classes))
        self.tiles = ImageTiles(image)
        self.drawing = threading.BoundedSemaphore(_DRAWN_AT_ONCE)
        self.token = secrets.token_urlsafe(16)
        name = store.path.name.removesuffix(".gz").removesuffix(".geojson").removesuffix(".json")
        self.job = FitJob(store.path.with_name(f"{name}.fit"), self._load)
        self.fitted: Fitted | None = None
        self._load()

    def server_close(self) -> None:
        """Stop listening, and end a running fit."""
        self.job.close()
        super().server_close()

    def _load(self) -> None:
        self.fitted = Fitted.load(self.job.folder, self.image)
        self.version = secrets.token_hex(4)  # keeps the browser from showing cached tiles of another result

    @property
    def full_shape(self) -> tuple[int, int]:
        """Height and width of the image in full-resolution pixels."""
        return self.image.height, self.image.width

    def info(self) -> dict[str, Any]:
        """Data of the page, as JSON values."""
        image = self.image
        return {
            "name": image.name,
            "width": image.width,
            "height": image.height,
            "tile": TILE,
            "overlap": OVERLAP,
            "lastLevel": self.tiles.last_level,
            "closer": CLOSER,
            "mpp": image.mpp[1] if image.mpp is not None else None,
            "file": self.store.path.name,
            "folder": self.job.folder.name,
            "token": self.token,
            "tokenHeader": TOKEN,
            "classes": self._classes(),
            "special": [IGNORE, REGION],
            "steps": list(STEPS),
        }

    def _classes(self) -> list[str]:
        found = [label_in(item) for item in self.store.snapshot()[1]]
        used = sorted({label for label in found if label is not None and label not in (IGNORE, REGION)})
        return list(dict.fromkeys([*self.classes, *used])) or ["object"]

    def document(self) -> dict[str, Any]:
        """All annotations and rejected finds, with their classes, as JSON values."""
        revision, items = self.store.snapshot()
        return {"revision": revision, "items": items, "labels": [label_in(item) for item in items]}

    def state(self) -> dict[str, Any]:
        """What a page asks for again and again, as JSON values."""
        fitted = self.fitted
        return {
            "fit": self.job.state.to_json(),
            "revision": self.store.revision,
            "version": self.version,
            "model": fitted is not None,
            "scanned": fitted is not None and bool(fitted.analysis.interest.size),
        }

    def start_fit(self, steps: int) -> dict[str, Any]:
        """Begin a fit of the annotations on disk; raises an AnnotationError if there are none."""
        items = self.store.snapshot()[1]
        annotations = training_annotations(items, self.full_shape)
        location = self.image.location
        assert location is not None  # `serve_image` opens paths and addresses
        return self.job.start(location, annotations, steps).to_json()

    def places(self, count: int, seed: int) -> dict[str, Any]:
        """Places to annotate next, as JSON values; boxes are (x0, y0, x1, y1) in full-resolution pixels."""
        items = self.store.snapshot()[1]
        evidence = None if self.fitted is None else self.fitted.evidence(items)
        found = suggest(self.full_shape, self._place_side(items), done_areas(items), evidence, count=count, seed=seed)
        boxes = [(place.kind, place.full_box) for place in found]
        return {"places": [{"kind": kind, "box": [x0, y0, x1, y1]} for kind, (y0, x0, y1, x1) in boxes]}

    def _place_side(self, items: Sequence[Feature]) -> int:
        kept = [item for item in items if not is_rejected(item)]
        low, high = _PLACE_SIDES
        side = high / 2
        if kept:
            read = read_annotations({"type": "FeatureCollection", "features": kept}, full_shape=self.full_shape)
            side = object_side(read) * _PLACE_OBJECTS if read.objects else side
        return int(min(max(side, low), high))


class RefusalError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Answer(NamedTuple):
    values: dict[str, Any]
    status: HTTPStatus = HTTPStatus.OK


class _Handler(LocalHandler):
    server: AnnotateServer
    assets: ClassVar = {
        "/": ("annotate.html", HTML),
        "/view.css": ("view.css", CSS),
        "/annotate.css": ("annotate.css", CSS),
        **{f"/{name}.js": (f"{name}.js", SCRIPT) for name in _SCRIPTS},
        **OPENSEADRAGON,
    }

    def respond(self, path: str, query: dict[str, list[str]]) -> None:
        """Answer with a tile or with JSON."""
        if found := _TILE_PATH.fullmatch(path):
            self._tile(found[1], int(found[2]), int(found[3]), int(found[4]))
        elif path in _READS:
            self._json(lambda: _Answer(_READS[path](self.server, query)))
        else:
            self.missing()

    def do_POST(self) -> None:  # noqa: N802
        """Change something, if the token is right."""
        admitted = self.admitted()
        if admitted is None:
            self.close_connection = True
        elif admitted[0] not in _WRITES:
            self.close_connection = True
            self.missing()
        else:
            self._json(lambda: _WRITES[admitted[0]](self.server, self._body()))

    def _json(self, make: Callable[[], _Answer]) -> None:
        try:
            values, status = make()
        except RefusalError as refusal:
            values, status = {"error": str(refusal)}, refusal.status
        except ValueError as error:  # AnnotationError
            values, status = {"error": str(error)}, HTTPStatus.BAD_REQUEST
        except OSError as error:
            values, status = {"error": f"cannot be written: {error}"}, HTTPStatus.INTERNAL_SERVER_ERROR
        self.answer(status, json.dumps(values, allow_nan=False).encode(), JSON)

    def _body(self) -> dict[str, Any]:
        """The body's JSON object; the connection ends after a refusal, because the body was not read."""
        self.close_connection = True
        token = self.headers.get(TOKEN, "")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise RefusalError(HTTPStatus.FORBIDDEN, "the token is missing or wrong: load the page again")
        if self.headers.get_content_type() != JSON:
            raise RefusalError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"expected {JSON}")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,12}", length):
            raise RefusalError(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
        if int(length) > MOST_BYTES:
            text = f"expected at most {MOST_BYTES:,} bytes, got {int(length):,}"
            raise RefusalError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
        content = self.rfile.read(int(length))
        if len(content) < int(length):
            raise RefusalError(HTTPStatus.BAD_REQUEST, "the request was cut short")
        self.close_connection = False
        try:
            body = json.loads(content, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise RefusalError(HTTPStatus.BAD_REQUEST, f"expected JSON ({error})") from error
        if not isinstance(body, dict):
            raise RefusalError(HTTPStatus.BAD_REQUEST, f"expected a JSON object, got a {type(body).__name__}")
        return body

    def _tile(self, layer: str, level: int, row: int, column: int) -> None:
        fitted = self.server.fitted
        with self.server.drawing:
            if layer == "image":
                content = self.server.tiles.image_tile(level, row, column)
            else:
                content = None if fitted is None else fitted.tiles.tile(layer, level, row, column)
        if content is None:
            self.missing()
            return
        kind = "image/jpeg" if layer == "image" else "image/png"
        self.answer(HTTPStatus.OK, content, kind, "private, max-age=86400")


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _whole(value: Any, name: str, low: int, high: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"expected {name} from {low:,} to {high:,}, got {value!r:.40}")
    return value


def _finds(server: AnnotateServer, _: dict[str, list[str]]) -> dict[str, Any]:
    fitted = server.fitted
    if fitted is None:
        return {"version": server.version, "threshold": None, "finds": [], "total": 0}
    items = server.store.snapshot()[1]
    found = {"finds": fitted.finds(items), "total": len(fitted.analysis.regions)}
    return {"version": server.version, "threshold": fitted.threshold, **found}


def _places(server: AnnotateServer, query: dict[str, list[str]]) -> dict[str, Any]:
    count = _whole(query.get("count", ["8"])[0], "count", 1, _MOST_PLACES)
    return server.places(count, _whole(query.get("seed", ["0"])[0], "seed", 0, 10**9 - 1))


def _colour(_: AnnotateServer, query: dict[str, list[str]]) -> dict[str, Any]:
    label = query.get("label", [""])[0]
    if not 0 < len(label) <= _LONGEST_LABEL:
        raise ValueError(f"expected a class of 1 to {_LONGEST_LABEL} characters, got {len(label)}")
    return {"colour": list(label_colour(label))}


def _save(server: AnnotateServer, body: dict[str, Any]) -> _Answer:
    put, delete = body.get("put", []), body.get("delete", [])
    if not isinstance(put, list) or not isinstance(delete, list) or not all(isinstance(i, str) for i in delete):
        raise ValueError("expected the lists put, of features, and delete, of their ids")
    revision = _whole(body.get("revision"), "revision", 0, 10**9)
    try:
        return _Answer({"revision": server.store.change(revision, put, delete)})
    except StaleError:
        return _Answer(server.document(), HTTPStatus.CONFLICT)


def _start(server: AnnotateServer, body: dict[str, Any]) -> _Answer:
    steps = _whole(body.get("steps"), "steps", *STEPS)
    try:
        return _Answer(server.start_fit(steps), HTTPStatus.ACCEPTED)
    except BusyError:
        raise RefusalError(HTTPStatus.CONFLICT, "a fit is running; cancel it first") from None


def _paint(server: AnnotateServer, body: dict[str, Any]) -> _Answer:
    stroke, geometry = body.get("stroke"), body.get("geometry")
    if not isinstance(stroke, list) or not all(_is_position(each) for each in stroke):
        raise ValueError("expected a stroke of positions [x, y]")
    radius = body.get("radius")
    if not isinstance(radius, int | float) or isinstance(radius, bool) or not math.isfinite(radius):
        raise ValueError("expected a radius in pixels")
    area = None
    if geometry is not None:
        if not isinstance(geometry, dict) or geometry.get("type") not in ("Polygon", "MultiPolygon"):
            raise ValueError("expected a geometry of type Polygon or MultiPolygon, or null")
        area = as_geometry(geometry["type"], geometry.get("coordinates"))
    positions = [(float(x), float(y)) for x, y in stroke]
    after = painted(area, positions, float(radius), server.full_shape, erase=body.get("erase") is True)
    return _Answer({"geometry": after})


def _is_position(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in value)
    )


_READS: dict[str, Callable[[AnnotateServer, dict[str, list[str]]], dict[str, Any]]] = {
    "/info.json": lambda server, _: server.info(),
    "/annotations.json": lambda server, _: server.document(),
    "/state.json": lambda server, _: server.state(),
    "/finds.json": _finds,
    "/places.json": _places,
    "/colour.json": _colour,
}
_WRITES: dict[str, Callable[[AnnotateServer, dict[str, Any]], _Answer]] = {
    "/annotations.json": _save,
    "/brush.json": _paint,
    "/fit.json": _start,
    "/cancel.json": lambda server, _: _Answer(server.job.cancel().to_json()),
}
