"""Experts: a user's own model with its tiles, its labels, and how to make it again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from typing import Any, get_args

from coarse2fine.experts.adapter import Kind, Pixels
from coarse2fine.experts.errors import ExpertError
from coarse2fine.experts.sources import Wanted, find_model, named_object
from coarse2fine.refiners.protocol import Label
from coarse2fine.tiling.geometry import ceil_div
from coarse2fine.tiling.image import Image

_MOST_TILE = 8192
# Cells in which maps are reported, along a side of a tile.
_MAP_CELLS = 64
_MOST_FINDS = 300
_BATCH_PIXELS = 4_000_000
# A pixel size that differs from the expected one by a larger factor is none of its plane.
_MOST_OFF = 1.25
_MOST_BATCH = 64


@dataclass(frozen=True)
class Expert:
    """A user's own model as the refiner of a model; made by `coarse2fine.expert`.

    Parameters
    ----------
    spec : str
        Text from which another process makes it again; empty for an object of this process.
    options : mapping
        Options of the adapter, JSON values.
    kind : {"boxes", "map", "classes", "vectors"}
    labels : tuple of Label
    tile : int
        Side of a tile in pixels of its plane. Tiles lie on one grid from (0, 0).
    context : int
        Pixels that are read around a tile; finds in them belong to the neighbours.
    downsample : int
        Full-resolution pixels per pixel of its plane.
    cell : int
        Side, in pixels of the plane, of the cells in which maps are reported; the tile itself for other kinds.
    confidence : float
        Least score of a find.
    most : int
        Most finds in a tile, for audits without assumptions.
    overlap : float
        IoU, and intersection over the smaller box, from which boxes of one class in neighbouring tiles are one object.
    batch : int
        Tiles in one call.
    sha256 : str
        Hash of its weights or code; empty if unknown.
    tile_macs : int
        Multiply-adds for a tile; 0 if not measured yet.
    estimated : bool
        Whether `tile_macs` was estimated from time, since the multiply-adds cannot be counted.
    mpp : float
        Microns per pixel that it expects, from which `downsample` follows for each image; 0 if that is given.
    call : callable, optional
        Takes tiles, uint8 (n, tile + 2 context, tile + 2 context, 3), RGB. None if a model file was loaded and nobody
        named the expert yet.
    module : object, optional
        The ``torch.nn.Module`` inside, if any.
    interest : callable, optional
        For vectors: takes them, float32 (n, d); returns how interesting each is, from 0 to 1.
    """

    spec: str
    options: Mapping[str, Any]
    kind: Kind
    labels: tuple[Label, ...]
    tile: int
    context: int
    downsample: int
    cell: int
    confidence: float
    most: int
    overlap: float
    batch: int
    sha256: str = ""
    tile_macs: int = 0
    estimated: bool = False
    mpp: float = 0.0
    call: Callable[[Pixels], Any] | None = field(default=None, compare=False, repr=False)
    module: Any = field(default=None, compare=False, repr=False)
    interest: Callable[[Any], Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        numbers = (self.tile, self.downsample, self.cell, self.batch, self.most)
        if not all(isinstance(n, int) and n > 0 for n in numbers) or not 0 <= self.context <= _MOST_TILE:
            raise ExpertError(f"expected whole numbers of at least 1, and a context of at least 0, got {self}")
        if self.tile > _MOST_TILE or self.tile % self.cell:
            raise ExpertError(
                f"expected a tile of at most {_MOST_TILE} px that holds whole cells, got {self.tile} and {self.cell}"
            )
        if self.kind not in get_args(Kind) or not self.labels or not 0 < self.confidence < 1:
            raise ExpertError(f"expected a kind, labels and a confidence between 0 and 1, got {self}")
        if not (0 < self.overlap <= 1 and isinstance(self.tile_macs, int) and self.tile_macs >= 0):
            raise ExpertError(f"expected an overlap between 0 and 1 and a number of multiply-adds, got {self}")
        if not (isinstance(self.mpp, (int, float)) and 0 <= self.mpp < math.inf):
            raise ExpertError(f"expected mpp in microns a pixel, above 0, got {self.mpp!r:.60}")
        if not (isinstance(self.spec, str) and isinstance(self.sha256, str)):
            raise ExpertError(f"expected texts as spec and sha256, got {self.spec!r:.60} and {self.sha256!r:.60}")
        kinds = {label.kind for label in self.labels}
        if len(kinds) > 1 or (self.kind == "boxes" and kinds != {"object"}):
            raise ExpertError("expected labels of one kind, and objects for boxes: give areas=True only for maps")

    @property
    def finds_objects(self) -> bool:
        """Whether a tile can hold several finds: boxes, or the parts of a map."""
        return self.kind == "boxes" or (self.kind == "map" and self.labels[0].kind == "object")

    @property
    def read_side(self) -> int:
        """Side of a tile as it is read, context included, in pixels of its plane."""
        return self.tile + 2 * self.context

    def grid(self, image: Image) -> tuple[int, int]:
        """Rows and columns of its tiles in an image."""
        side = self.tile * self.downsample
        return ceil_div(image.height, side), ceil_div(image.width, side)

    @property
    def name(self) -> str:
        """Short name for messages."""
        if self.spec or self.call is None:
            return self.spec or "of the process that fitted it"
        return getattr(self.call, "__name__", "") or type(self.call).__name__

    @property
    def text(self) -> str:
        """Text from which other processes make it again: its spec, and its options as JSON if it has any."""
        return f"{self.spec} {json.dumps(dict(self.options), sort_keys=True)}" if self.options else self.spec

    def __call__(self, pixels: Pixels) -> Any:
        """The raw answer for tiles.

        Parameters
        ----------
        pixels : ndarray, uint8, (n, tile + 2 context, tile + 2 context, 3)

        Raises
        ------
        ExpertError
            If a model file was loaded and the expert was not named.
        """
        if self.call is None:
            raise ExpertError(
                f"this model runs the expert {self.spec or 'of the process that fitted it'!r}, and a file may not "
                f"start code: give it again, such as analyze(..., expert={self.spec or 'your_model'!r}), or --expert"
            )
        return self.call(pixels)

    def on(self, image: Image) -> Expert:
        """The expert with the `downsample` that shows an image at its `mpp`; as it is if that was not given.

        Raises
        ------
        ExpertError
            If the image's pixel size is unknown, or no whole factor leads near `mpp`.
        """
        if not self.mpp:
            return self
        if image.mpp is None:
            raise ExpertError(
                f"the expert {self.name} expects {self.mpp:g} microns a pixel, but {image} does not say its pixel "
                "size: open it by open_image(path, mpp=...), or give downsample= instead of mpp="
            )
        size = sum(image.mpp) / 2
        whole = max(1, round(self.mpp / size))
        if not 1 / _MOST_OFF <= self.mpp / size / whole <= _MOST_OFF:
            raise ExpertError(
                f"the expert {self.name} expects {self.mpp:g} microns a pixel, and {image} has {size:.3g}: no whole "
                "number of its pixels is near; give downsample= instead of mpp=, or another image"
            )
        return replace(self, downsample=whole)

    def describe(self) -> dict[str, Any]:
        """JSON values for a model file."""
        kept = {f: getattr(self, f) for f in (*_STORED, "mpp")}
        return {**kept, "options": dict(self.options), "labels": [asdict(label) for label in self.labels]}

    def decisive(self) -> dict[str, Any]:
        """JSON values of all that its answers to tiles depend on: answers are stored by them."""
        return {name: value for name, value in self.describe().items() if name not in _NO_MATTER}

    @classmethod
    def described(cls, text: Mapping[str, Any]) -> Expert:
        """The expert of a model file, without its call."""
        labels = tuple(Label(**each) for each in text["labels"])
        known = {name: text[name] for name in _STORED} | {"mpp": text.get("mpp", 0.0)}  # 0.1 had none
        return cls(**known, options=dict(text["options"]), labels=labels)

    def check(self, image: Any = None) -> Any:
        """Try the expert on tiles of an image; see `coarse2fine.experts.check.check_expert`."""
        # By its name: that module imports this one.
        return import_module("coarse2fine.experts.check").check_expert(self, image)


# Facts that change its speed, or which tiles it gets, not its answers to them.
_NO_MATTER = ("batch", "tile_macs", "estimated", "mpp")
_STORED = (
    "spec",
    "kind",
    "tile",
    "context",
    "downsample",
    "cell",
    "confidence",
    "most",
    "overlap",
    "batch",
    "sha256",
    "tile_macs",
    "estimated",
)


def expert(
    model: Any,
    *,
    kind: Kind | None = None,
    tile: int = 512,
    context: int = 0,
    downsample: int = 1,
    mpp: float | None = None,
    labels: Sequence[str] | None = None,
    areas: bool | None = None,
    confidence: float | None = None,
    cell: int | None = None,
    most: int = _MOST_FINDS,
    overlap: float = 0.5,
    batch: int | None = None,
    tile_macs: int = 0,
    interest: Callable[[Any], Any] | str | None = None,
    **options: Any,
) -> Expert:
    """Make an expert of your own model, to be run on the tiles where it would find something.

    Parameters
    ----------
    model : str, callable or torch.nn.Module
        ``"ultralytics:best.pt"``, ``"onnx:unet.onnx"``, ``"torchvision:NAME"``, ``"sahi:TYPE"``, ``"timm:NAME"``,
        ``"pt2:FILE"``; or ``"package.module:function"``, which is called with `options` and returns a callable; or an
        object: a callable that takes uint8 RGB tiles (n, h, w, 3), a `torch.nn.Module` whose logits are a map, a
        SAHI ``DetectionModel``, an Ultralytics model, or a net of torchvision or timm. `docs/experts.md` has them all.
    kind : {"boxes", "map", "classes", "vectors"}, optional
        Form of the answer: objects of each tile, a map (n, k, h, w), classes (n, k), or vectors (n, d) for each tile.
        By default what the adapter knows, else "boxes".
    tile : int
        Side of a tile in pixels of the expert's plane. Tiles lie on one grid from (0, 0), edges are padded.
    context : int
        Pixels read around each tile. Objects whose centre lies in them belong to the neighbour.
    downsample : int
        Full-resolution pixels per pixel of the expert's plane.
    mpp : float, optional
        Instead of `downsample`: microns per pixel that the expert expects. The images of a fit are then read with the
        whole factor that leads nearest to it, and others at the pixel size of these.
    labels : sequence of str, optional
        Names of the classes, in the order of the model's numbers; by default what the model tells, else one: "find".
    areas : bool, optional
        Whether finds are areas (joined over tiles) instead of objects (counted). By default maps, classes and vectors
        are; a map of objects is divided into connected parts.
    confidence : float, optional
        Least score of a find, between 0 and 1; by default the threshold of the model's library if it has one, else 0.5.
    cell : int, optional
        Side of the cells in which maps of areas are reported, a divisor of `tile`; by default a 64th of it.
    most : int
        Most finds in a tile, which audits without assumptions need.
    overlap : float
        IoU, or share of the smaller box, from which boxes of one class in neighbouring tiles are one object.
    batch : int, optional
        Tiles in one call; by default by their size. `Expert.check` measures the best.
    tile_macs : int
        Multiply-adds for a tile, if known; 0 to count them, or to estimate them from time.
    interest : callable or "package.module:function", optional
        For vectors: takes them, float32 (n, d); returns how interesting each is, from 0 to 1.
    **options
        For the adapter, or for the function that makes the model. If that function returns a net, ``mean``, ``std``,
        ``activation`` and ``device`` say how it is called; ``kwargs``, a mapping, is what the function alone gets.

    Returns
    -------
    Expert

    Raises
    ------
    ExpertError
        If the model cannot be made, or a parameter is missing or out of range.
    """
    if kind is not None and kind not in get_args(Kind):
        raise ExpertError(f'expected the kind "boxes", "map", "classes" or "vectors", got {kind!r}')
    if mpp is not None and downsample != 1:
        raise ExpertError(f"expected downsample= or mpp=, got both: {downsample} and {mpp}")
    if mpp == 0:
        raise ExpertError("expected mpp in microns a pixel, above 0, got 0")
    side = tile + 2 * context
    adapter, spec = find_model(model, options, Wanted(kind, side, confidence))
    kind = kind or adapter.kind or "boxes"
    names = tuple(labels or adapter.labels or ("find",))
    areal = kind != "boxes" if areas is None else areas
    if kind == "vectors" and interest is None:
        raise ExpertError("vectors need interest=, a function that says how interesting each is, from 0 to 1")
    made = Expert(
        spec=spec,
        options=_json_options(options, interest) if spec else {},
        kind=kind,
        labels=tuple(Label(str(name), "area" if areal else "object") for name in names),
        tile=tile,
        context=context,
        downsample=downsample,
        cell=(cell or _map_cell(tile)) if kind == "map" and areal else tile,
        confidence=(adapter.confidence or 0.5) if confidence is None else confidence,
        most=most,
        overlap=overlap,
        batch=batch or adapter.batch or max(1, min(_MOST_BATCH, _BATCH_PIXELS // max(1, side**2))),
        sha256=adapter.sha256,
        tile_macs=tile_macs,
        mpp=mpp or 0.0,
        call=adapter.call,
        module=adapter.module,
        interest=named_object(interest) if isinstance(interest, str) else interest,
    )
    return replace(made, batch=min(made.batch, adapter.batch)) if adapter.batch else made


def _map_cell(tile: int) -> int:
    """The largest divisor of a tile that is at most a 64th of it."""
    return max(n for n in range(1, max(1, tile // _MAP_CELLS) + 1) if tile % n == 0)


def _json_options(options: Mapping[str, Any], interest: Any) -> dict[str, Any]:
    kept = dict(options) | ({"interest": interest} if isinstance(interest, str) else {})
    try:
        json.dumps(kept, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ExpertError(
            f"the options of an expert that is named by a text must be JSON values ({error}); "
            "give names and numbers, and make objects in a function of your own: 'package.module:function'"
        ) from error
    return kept
