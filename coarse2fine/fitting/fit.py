"""Fitting a model to annotated scenes.

The refine net is trained at full resolution on the annotations. The base is trained at low resolution on the refine
net's output on the same scenes (distillation, Hinton et al. 2015, arXiv:1503.02531): it learns where refining would
find something, not what a person marked. Held-out parts of the scenes set the thresholds and are not trained on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from coarse2fine.bases import TIMM, prefix_of
from coarse2fine.config import check_seed, names_checked
from coarse2fine.fitting.bands import check_left_out
from coarse2fine.fitting.classes.fit_classifier import one_class
from coarse2fine.fitting.geometry import FINE_STRIDE, STRIDES, largest_side, perhaps_areas, smallest_side
from coarse2fine.fitting.one_band import BandOrder, ReadyBand, fit_band
from coarse2fine.fitting.pairs import Sources, load_pairs
from coarse2fine.fitting.resume import SHARE, load_start, reading
from coarse2fine.fitting.scene import LeftOut
from coarse2fine.fitting.specialists.add import DEEPEST, MODES, Mode
from coarse2fine.fitting.task import FitTask, Schedule, bands_of, prepare, tell
from coarse2fine.fitting.timm_weights import Weights
from coarse2fine.fitting.watching.recipe import WatchedExperts, WatchRecipe
from coarse2fine.fitting.watching.several import fit_experts
from coarse2fine.model import Geometry, Model
from coarse2fine.models.precision import Precision
from coarse2fine.models.runtime import Runtime
from coarse2fine.models.timm_text import parse_network
from coarse2fine.progress import Progress
from coarse2fine.terminal import say

_LEAST_STEPS = 10
_MOST_DEPTH = 8


@names_checked
def fit(
    images: Sources,
    annotations: Sources | None = None,
    *,
    model: Model | str | os.PathLike[str] | None = None,
    expert: WatchedExperts | None = None,
    watch: float | str = 0.1,
    channels: int | Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    rotate: bool = True,
    object_size: float | None = None,
    areas: Sequence[str] = (),
    base: str | None = None,
    base_weights: Weights = None,
    width: float = 1.0,
    geometry: Geometry | Literal["search"] | None = None,
    minimise: Literal["macs", "seconds"] = "macs",
    recall: float = 0.97,
    steps: int = 1000,
    specialists: Mode | None = "auto",
    depth: int = DEEPEST,
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
    name: str = "model",
    device: str | None = None,
    precision: Precision = "auto",
    progress: bool = True,
) -> Model:
    """Fit a model to annotated scenes, in minutes on a laptop.

    Training ends when it no longer helps on held-out parts of the scenes, so small and easy scenes take less.

    Parameters
    ----------
    images : path, glob, folder, array, Image, or sequence of paths, arrays or Images
        The scenes.
    annotations : path, glob, folder, GeoJSON dict, or sequence of paths or GeoJSON dicts
        GeoJSON, COCO JSON, Label Studio, LabelMe or YOLO text, matched to image files by name, or one file for all;
        see `coarse2fine.annotations.read.read_annotations`. Polygons, boxes and points in full-resolution pixels,
        each with a class. Areas of class ``Ignore*`` are left out; if there are areas of class ``Region*``, only the
        pixels inside them count as annotated. All other pixels without annotation count as background. More than 24
        classes of objects are found as one class, and a classifier names each find. For images that are not files, one
        annotation each, in order. By default those that lie beside the images. An expert needs none; with some, its
        accuracy is said.
    model : Model or path, optional
        A fitted model to go on from, in a fraction of the time: its classes, planes and normalisation stay, and its
        nets are trained further on these scenes, in at most a quarter of `steps`. Thresholds and specialists are fitted
        anew. Give the earlier scenes too, or the model forgets what it learned from them. Of the parameters that
        follow, `expert`, `areas`, `geometry`, `base`, `base_weights` and `width` must be left out.
    expert : Expert, or sequence or mapping of Expert, optional
        Your own model, see `coarse2fine.expert`: instead of learning from annotations, the scan learns where it finds
        something, and `analyze` runs it there. Of the other parameters only `channels`, `value_range`, `rotate`,
        `recall`, `steps`, `cache`, `seed`, `name`, `device`, `precision` and `progress` then have a meaning. If there
        are several, the first is the reference, and the others are alternatives: each answers for the tiles of those
        clusters of the scan's features in which it gives what the first does, if it is cheaper. A mapping, such as
        ``{"nuclei": a, "tissue": b}``, names outputs: each expert, perhaps with alternatives, has a scan, thresholds
        and recall of its own.
    watch : float or str
        Share of the tiles on which the expert runs while it is watched, or a time, such as ``"20min"``; of each output.
    channels, value_range : optional
        How to read the images, see `open_image`. The model stores what was read, and analyses read images alike.
    rotate : bool
        Whether an object keeps its class when turned or mirrored, as in tissue and in views from above. False for
        writing, prints, and all that has a right way up.
    object_size : float, optional
        Side of a typical object in full-resolution pixels, for annotations that are points. By default the median side
        of the drawn objects; if all are points, with a warning, the 10th percentile of the nearest-neighbour distance,
        32 at most unless points crowd.
    areas : sequence of str
        Classes that are learned as areas, which come back as outlines; boxes that touch are then one area. By default
        those of irregular polygons with a median side above 256 pixels.
    base : str, optional
        The net that scans: a convolutional network of timm, such as ``"timm:mobilenetv2_100"``, of which the first
        stages are fine-tuned, or the text of a base of a registered kind, see `register_base`; by default a small
        built-in net. Arguments of the network follow its name, and so does the input normalisation of its weights, if
        timm does not know it:
        ``"timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5"``.
    base_weights : path or "none", optional
        Weights of that network, by timm's names (.safetensors or .pth); "none" for random ones; by default those of
        timm's hub.
    width : float
        Factor on the channels of the built-in base. A wider base costs more and chooses better.
    geometry : Geometry or "search", optional
        Cells and resolutions. By default they follow from the objects' sizes, so that as few objects as possible are
        too large or too small; a warning says how many are left out. "search" fits bases for several geometries and a
        wider base, and takes the cheapest; it takes two to three times as long.
    minimise : {"macs", "seconds"}
        Cost to minimise: multiply-adds, or time on this machine. It decides the window size, the number of stages of
        the scan, and the result of "search".
    recall : float
        Recall against the exhaustive pass for which the default threshold is set, on held-out parts of the scenes.
    steps : int
        Optimisation steps of the refine net, at most; the base takes three times as many as that took, cheaper ones.
    specialists : {"heads", "tree", "activity", "auto"}, optional
        Small nets for kinds of cells, beside the refine net: "heads", a linear reader for each cluster of unsure cells;
        "tree", columns of convolutions for each cluster, and for clusters within it, as deep as it helps; "activity",
        columns for groups of features of the scan, computed at full resolution only where these fire. They are kept
        only if they help significantly on held-out parts of the scenes; if not, and they were requested by name, a
        warning says so. "auto" takes the better of the first two if it helps significantly, and then the third if it
        does beside them; None tries none.
    depth : int
        Most steps down the tree of specialists, 1 to 8; each is kept only if it helps significantly beyond those above
        it.
    cache : path, optional
        Folder for the specialists' training data and weights (up to some hundred MB), so that an interrupted fit of the
        same scenes can resume. If a Dask client or scheduler is set, it trains them: its workers must see the folder.
        By default a temporary folder, and training in this process. An expert's answers are stored there too, by its
        hash and the pixels of the tiles: no tile is run twice.
    seed : int
        The same seed and data give the same model on the same machine, unless an expert's multiply-adds are estimated
        from time.
    name : str
        Name of the model.
    device : str, optional
        A torch device; by default the best available.
    precision : {"auto", "fp32", "bf16"}
        Number format; "auto" takes bfloat16 if the hardware supports it.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Model

    Raises
    ------
    AnnotationError
        If annotations are missing, unreadable, outside their image, or hold no object at all; or if a whole class, or a
        fifth of all objects, is too large or too small (see `geometry`).
    ImageError
        If an image cannot be read.
    ModelError
        If the base is unknown, or its weights are not available or do not fit.
    TypeError
        If a parameter's name is unknown; the message names similar ones.
    ValueError
        If a parameter is out of range.
    """
    _check(recall, steps, seed, object_size, areas, base, base_weights, specialists, depth, geometry, width)
    runtime = Runtime.choose(device, precision)
    if expert is not None:
        if model is not None:
            raise ValueError("model goes on from annotated scenes, expert is watched instead: leave out one of them")
        watching = WatchRecipe.each(expert, watch, recall, steps, rotate, seed, name, cache)
        return fit_experts(images, annotations, watching, runtime, channels, value_range, progress=progress)
    start = None if model is None else load_start(model, _decided(geometry, base, base_weights, width, areas))
    if start is not None:
        channels, value_range = reading(start, channels, value_range)
        steps = max(_LEAST_STEPS, round(SHARE * steps))
    pairs = load_pairs(images, annotations, channels, value_range)
    if start is None and (note := perhaps_areas([known for _, known in pairs], areas)):
        tell(note)
    pairs, many = one_class(pairs, start, areas)
    bands, schedule = bands_of(pairs, start, object_size, geometry, areas), Schedule(rotate, steps, seed, width)
    strict = start is None and not isinstance(geometry, Geometry)
    search = geometry == "search"
    order = BandOrder(base, base_weights, search, minimise, recall, specialists, int(depth), cache, name, many)
    with torch.random.fork_rng(devices=[]):
        # Before any training, so that a fault of the data, the network or its weights is reported at once.
        ready = [ReadyBand.of(order, prepare(pairs, band, start, schedule, strict=strict)) for band in bands]
        lost, models = _lost([each.task for each in ready]), []
        with Progress(progress, [step for each in ready for step in each.expected]) as bars:
            for number, each in enumerate(ready):
                if len(ready) > 1 and progress:
                    say(f"band {number + 1} of {len(ready)}: {each.task.band}", file=sys.stderr)
                models.append(fit_band(each, runtime, number, bars))
    known = {"left_out": {each.label: [each.too_large, each.too_small] for each in lost}}
    finest = replace(models[0], provenance={**models[0].provenance, **known})
    return replace(finest, others=tuple(models[1:]))


def _lost(tasks: Sequence[FitTask]) -> tuple[LeftOut, ...]:
    """The objects that are left out; warn the caller of them, or refuse if they are too many."""
    first, last = tasks[0].recipe, tasks[-1].recipe
    smallest = smallest_side(first.geometry.refine_downsample)
    largest = largest_side(last.refiner, last.geometry.refine_downsample)
    lost = tasks[0].lost if len(tasks) == 1 else check_left_out([task.band for task in tasks], largest, smallest)
    if lost:
        tell(f"left out, objects must have {smallest:,.0f} to {largest:,.0f} px: {'; '.join(map(str, lost))}")
    return lost


def _check(
    recall: float,
    steps: int,
    seed: int,
    object_size: float | None,
    areas: Sequence[str],
    base: str | None,
    base_weights: Weights,
    specialists: str | None,
    depth: int,
    geometry: Geometry | str | None,
    width: float,
) -> None:
    _check_scan(geometry, width)
    if not 0 < recall < 1:
        raise ValueError(f"recall must lie between 0 and 1, got {recall}")
    if steps % 1 != 0 or steps < _LEAST_STEPS:
        raise ValueError(
            f"steps must be a whole number, at least {_LEAST_STEPS} (useful from some hundreds); got {steps}"
        )
    check_seed(seed)
    if object_size is not None and not 0 < object_size < np.inf:
        raise ValueError(f"object_size must be a positive number of pixels, got {object_size}")
    if isinstance(areas, str) or areas is None:
        raise ValueError(f"areas must be a list of classes, such as ['pond'], got {areas!r}")
    if base is not None and prefix_of(base) in (None, TIMM):
        parse_network(base)
    elif base_weights is not None:
        raise ValueError("base_weights are weights of a base of timm: name it too, such as base='timm:mobilenetv2_100'")
    if specialists is not None and specialists not in MODES:
        raise ValueError(f"specialists must be None or one of {', '.join(MODES)}, got {specialists!r}")
    if depth % 1 != 0 or not 1 <= depth <= _MOST_DEPTH:
        raise ValueError(f"depth must be a whole number of steps down the tree, 1 to {_MOST_DEPTH}; got {depth}")


def _decided(geometry: object, base: str | None, weights: Weights, width: float, areas: Sequence[str]) -> list[str]:
    """Parameters that are given although a model to go on from decides them."""
    given = {"geometry": geometry, "base": base, "base_weights": weights, "width": None if width == 1 else width}
    given["areas"] = areas or None
    return [name for name, value in given.items() if value is not None]


def _check_scan(geometry: Geometry | str | None, width: float) -> None:
    if not 0.25 <= width <= 8:
        raise ValueError(f"width must be a factor between 0.25 and 8, got {width}")
    if geometry is None or geometry == "search":
        return
    if not isinstance(geometry, Geometry):
        raise ValueError(f'geometry must be a Geometry or "search", got {geometry!r}')
    if geometry.fine_cell != FINE_STRIDE * geometry.refine_downsample:
        raise ValueError(
            f"the refine net's cells are {FINE_STRIDE * geometry.refine_downsample} px if it reads the image at 1/"
            f"{geometry.refine_downsample}: expected cell = {FINE_STRIDE} * refine_downsample * fine, got {geometry}"
        )
    if geometry.cell // geometry.scan_downsample not in STRIDES:
        raise ValueError(f"a cell must be 1, 2, 4 or 8 pixels of the plane that is scanned, got {geometry}")
