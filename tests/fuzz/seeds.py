"""Whole, small files of every kind that strangers send: what the fuzzer damages."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from coarse2fine.model import load_model


@dataclass(frozen=True)
class Seed:
    """One whole input.

    Parameters
    ----------
    kind : str
        What it is handed to: "image", "annotations", "mask" or "model".
    name : str
        Of its format.
    path : Path
        A file or a folder.
    """

    kind: str
    name: str
    path: Path


def make_seeds(folder: Path) -> list[Seed]:
    """Write all seeds into a folder.

    Parameters
    ----------
    folder : Path
        Is there, and empty.
    """
    made: list[Seed] = []
    for make in (_tiffs, _pictures, _zarrs, _annotations, _models):
        made += make(folder)
    return made


def _pixels(channels: int = 3, kind: str = "u1") -> NDArray[Any]:
    rng = np.random.default_rng(0)
    soft = np.kron(rng.integers(0, 200, (12, 10, channels)), np.ones((16, 16, 1), int))
    return (soft + rng.integers(0, 55, soft.shape)).astype(kind)


def _tiffs(folder: Path) -> list[Seed]:
    tile: dict[str, Any] = {"tile": (64, 64)}
    ways: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
        "plain": (_pixels(), {"photometric": "rgb"}),
        "deflate": (_pixels(), {**tile, "photometric": "rgb", "compression": "zlib", "predictor": True}),
        "jpeg": (_pixels(), {**tile, "photometric": "ycbcr", "compression": "jpeg"}),
        "lzw": (_pixels(1)[..., 0], {"rowsperstrip": 32, "compression": "lzw"}),
        "packbits": (_pixels(1)[..., 0], {"rowsperstrip": 16, "compression": "packbits"}),
        "jpeg2000": (_pixels(), {**tile, "photometric": "rgb", "compression": "jpeg2000"}),
        "zstd16": (_pixels(1, "u2")[..., 0] * 200, {**tile, "compression": "zstd"}),
        "float": (_pixels(1, "f4")[..., 0], {**tile, "compression": "zlib"}),
        "big": (_pixels(), {**tile, "photometric": "rgb", "compression": "zlib"}),
        "alpha": (_pixels(4), {**tile, "photometric": "rgb", "extrasamples": ["unassalpha"], "compression": "zlib"}),
        "planar": (np.moveaxis(_pixels(), 2, 0), {**tile, "photometric": "rgb", "planarconfig": "separate"}),
        "ome": (_pixels(1)[..., 0], {"metadata": {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "um"}}),
    }
    made = []
    for name, (pixels, options) in ways.items():
        path = folder / (f"{name}.ome.tif" if name == "ome" else f"{name}.tif")
        tifffile.imwrite(path, pixels, bigtiff=name == "big", **options)
        made.append(Seed("image", f"tiff {name}", path))
    path = folder / "pyramid.tif"
    with tifffile.TiffWriter(path) as file:
        for number, step in enumerate((1, 2)):
            level = _pixels()[::step, ::step]
            file.write(level, tile=(32, 32), compression="zlib", photometric="rgb", subfiletype=int(number > 0))
    return [*made, Seed("image", "tiff pyramid", path)]


def _pictures(folder: Path) -> list[Seed]:
    pixels = _pixels()
    contents: dict[str, bytes | bytearray] = {
        "png": imagecodecs.png_encode(pixels),
        "png16": imagecodecs.png_encode(_pixels(1, "u2") * 200),
        "jpg": imagecodecs.jpeg8_encode(pixels),
        "webp": imagecodecs.webp_encode(pixels, lossless=True),
        "jp2": imagecodecs.jpeg2k_encode(pixels, codecformat="jp2"),
        "bmp": cv2.imencode(".bmp", pixels)[1].tobytes(),
        "rle.bmp": _run_length_bmp(),
    }
    for name, content in contents.items():
        (folder / f"picture.{name}").write_bytes(content)
    return [Seed("image", name, folder / f"picture.{name}") for name in contents]


def _run_length_bmp() -> bytes:
    """A bitmap of 8 bits in runs: 40 x 24 pixels, each row one run."""
    rows = b"".join(bytes([40, 5 * y, 0, 0]) for y in range(24)) + b"\0\1"
    palette = b"".join(bytes([v, v, v, 0]) for v in range(256))
    numbers = [40, 40, 24, 1 | 8 << 16, 1, len(rows), 2835, 2835, 256, 0]
    head = b"BM" + _words(14 + 40 + 1024 + len(rows), 0, 14 + 40 + 1024)
    return head + _words(*numbers) + palette + rows


def _words(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


def _zarrs(folder: Path) -> list[Seed]:
    pixels = np.moveaxis(_pixels(), 2, 0)
    ways: dict[str, dict[str, Any]] = {
        "zarr2": {"zarr_format": 2, "chunks": (3, 64, 64)},
        "zarr3": {"zarr_format": 3, "chunks": (3, 64, 64)},
        "sharded": {"zarr_format": 3, "chunks": (3, 32, 32), "shards": (3, 64, 64)},
    }
    made = []
    for name, options in ways.items():
        path = folder / f"{name}.zarr"
        array = zarr.create_array(str(path), shape=pixels.shape, dtype="u1", **options)
        array[...] = pixels
        made.append(Seed("image", name, path))
    for version in (2, 3):
        path = folder / f"ome{version}.zarr"
        group = zarr.open_group(str(path), mode="w", zarr_format=version)
        for number, step in enumerate((1, 2)):
            level = pixels[:, ::step, ::step]
            group.create_array(str(number), shape=level.shape, chunks=(3, 48, 48), dtype="u1")[...] = level
        axes = [{"name": n, "type": "channel" if n == "c" else "space"} for n in "cyx"]
        scales = [[1.0, 0.5 * step, 0.5 * step] for step in (1, 2)]
        datasets = [
            {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
            for n, scale in enumerate(scales)
        ]
        multiscales: Any = [{"axes": axes, "datasets": datasets, **({"version": "0.4"} if version == 2 else {})}]
        if version == 2:
            group.attrs["multiscales"] = multiscales
        else:
            group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
        made.append(Seed("image", f"ome-zarr {version}", path))
    return made


def _annotations(folder: Path) -> list[Seed]:
    ring = [[10, 10], [60, 12], [50, 70], [10, 10]]
    geometries: list[dict[str, Any]] = [
        {"type": "Polygon", "coordinates": [ring]},
        {"type": "Point", "coordinates": [30, 40]},
        {"type": "MultiPolygon", "coordinates": [[ring], [[[x + 70, y] for x, y in ring]]]},
        {"type": "MultiPoint", "coordinates": [[5, 6], [7, 8]]},
    ]
    features = [
        {
            "type": "Feature",
            "geometry": geometry,
            "properties": {
                "objectType": "annotation",
                "classification": {"name": name, "color": [200, 0, 0]},
                "measurements": {"area": 12.5, "confidence": 3},
            },
        }
        for geometry, name in zip(geometries, ("cell", "dot", "Ignore*", "dot"), strict=True)
    ]
    content = json.dumps({"type": "FeatureCollection", "features": features}).encode()
    coco = {
        "images": [{"id": 1, "file_name": "picture.png", "width": 160, "height": 192}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [9, 9, 30, 9], "segmentation": [[9, 9, 39, 9, 39, 18]]},
        ],
    }
    files: dict[str, Callable[[], bytes]] = {
        "plain.geojson": lambda: content,
        "packed.geojson.gz": lambda: gzip.compress(content, mtime=0),
        "coco.json": lambda: json.dumps(coco).encode(),
    }
    for name, make in files.items():
        (folder / name).write_bytes(make())
    made = [Seed("annotations", name.partition(".")[2], folder / name) for name in files]
    return [*made, Seed("mask", "mask geojson", folder / "plain.geojson")]


def _models(folder: Path) -> list[Seed]:
    names = ("craters", "generic", "glyphs")
    return [Seed("model", f"model {name}", load_model(name).save(folder / f"{name}.c2f")) for name in names]
