"""Fitting a model to annotated scenes.

The refine net is trained at full resolution on the annotations. The base is trained at low resolution on the refine
net's output on the same scenes (distillation, Hinton et al. 2015, arXiv:1503.02531): it learns where refining would
find something, not what a person marked. Held-out parts of the scenes set the thresholds and are not trained on.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from coarse2fine.annotations.read import Annotations
from coarse2fine.bases import TIMM, prefix_of, unfitted
from coarse2fine.config import check_seed, names_checked
from coarse2fine.experts.expert import Expert
from coarse2fine.fitting.base import train_base
from coarse2fine.fitting.calibrate import Calibrated, CalibrationSet, Price, calibrate, calibrates_on_all
from coarse2fine.fitting.cascade import add_glances, measure_price, scan_candidates
from coarse2fine.fitting.crops import Recipe, normalisation
from coarse2fine.fitting.geometry import (
    FINE_STRIDE,
    STRIDES,
    Sizes,
    base_spec,
    choose_geometry,
    find_labels,
    largest_side,
    measure,
    refiner_spec,
    smallest_side,
)
from coarse2fine.fitting.hold_out import check_cells, check_objects, hold_back
from coarse2fine.fitting.pairs import Sources, load_pairs
from coarse2fine.fitting.refiner import train_refiner
from coarse2fine.fitting.scene import PART, LeftOut, Scene
from coarse2fine.fitting.specialists.activity import add_activity
from coarse2fine.fitting.specialists.add import MODES, Mode, add_specialists
from coarse2fine.fitting.teacher import Answers, exhaustive_answer
from coarse2fine.fitting.timm_weights import Weights, make_backbone
from coarse2fine.fitting.watching.fit import fit_expert
from coarse2fine.fitting.watching.recipe import WatchRecipe
from coarse2fine.model import Geometry, Model
from coarse2fine.models.base import Base
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.precision import Precision
from coarse2fine.models.runtime import Runtime
from coarse2fine.models.timm_text import parse_network
from coarse2fine.progress import Progress
from coarse2fine.refiners.detection import DetectionRefiner
from coarse2fine.refiners.protocol import Label
from coarse2fine.remembered import KEY, Remembered
from coarse2fine.tiling.image import Image

_HELD_SHARE = 0.2
# Progress bars with their usual shares of the time; a search trains several bases.
_FIRST = (("refine net", 0.45), ("specialists", 0.06), ("refine net's answer", 0.01), ("specialists of the scan", 0.02))
_EACH_BASE = (("samples for the base", 0.06), ("base", 0.4), ("calibrating", 0.02))
_EXPECTED = (_FIRST + _EACH_BASE, _FIRST + 4 * _EACH_BASE)


@names_checked
def fit(
    images: Sources,
    annotations: Sources | None = None,
    *,
    expert: Expert | Sequence[Expert] | None = None,
    watch: float | str = 0.1,
    channels: int | Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    rotate: bool = True,
    object_size: float | None = None,
    base: str | None = None,
    base_weights: Weights = None,
    width: float = 1.0,
    geometry: Geometry | Literal["search"] | None = None,
    minimise: Literal["macs", "seconds"] = "macs",
    recall: float = 0.97,
    steps: int = 1000,
    specialists: Mode | None = "auto",
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
    name: str = "model",
    device: str | None = None,
    precision: Precision = "auto",
    progress: bool = True,
) -> Model:
    """Fit a model to annotated scenes, in minutes on a laptop.

    Parameters
    ----------
    images : path, glob, folder, array, Image, or sequence of paths, arrays or Images
        The scenes.
    annotations : path, glob, folder, GeoJSON dict, or sequence of paths or GeoJSON dicts
        GeoJSON, COCO JSON, Label Studio, LabelMe or YOLO text, matched to image files by name, or one file for all;
        see `coarse2fine.annotations.read.read_annotations`. Polygons, boxes and points in full-resolution pixels,
        each with a class. Areas of class ``Ignore*`` are left out; if there are areas of class ``Region*``, only the
        pixels inside them count as annotated. All other pixels without annotation count as background. For images that
        are not files, one annotation each, in order. An expert needs none; with some, its accuracy is said.
    expert : Expert or sequence of Expert, optional
        Your own model, see `coarse2fine.expert`: instead of learning from annotations, the scan learns where it finds
        something, and `analyze` runs it there. Of the other parameters only `channels`, `value_range`, `rotate`,
        `recall`, `steps`, `cache`, `seed`, `name`, `device`, `precision` and `progress` then have a meaning. If there
        are several, the first is the reference, and the others are alternatives: each answers for the tiles of those
        clusters of the scan's features in which it gives what the first does, if it is cheaper.
    watch : float or str
        Share of the tiles on which the expert runs while it is watched, or a time, such as ``"20min"``.
    channels, value_range : optional
        How to read the images, see `open_image`. The model stores what was read, and analyses read images alike.
    rotate : bool
        Whether an object keeps its class when turned or mirrored, as in tissue and in views from above. False for
        writing, prints, and all that has a right way up.
    object_size : float, optional
        Side of a typical object in full-resolution pixels, for annotations that are points. By default the median side
        of the drawn objects; if all are points, the 10th percentile of the nearest-neighbour distance, with a warning.
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
        Optimisation steps of each of the two nets.
    specialists : {"heads", "tree", "activity", "auto"}, optional
        Small nets for kinds of cells, beside the refine net: "heads", a linear reader for each cluster of unsure cells;
        "tree", columns of convolutions for each cluster, and for clusters within it, as deep as it helps; "activity",
        columns for groups of features of the scan, computed at full resolution only where these fire. They are kept
        only if they help significantly on held-out parts of the scenes; if not, and they were requested by name, a
        warning says so. "auto" takes the better of the first two if it helps significantly, and then the third if it
        does beside them; None tries none.
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
    _check(recall, steps, seed, object_size, base, base_weights, specialists, geometry, width)
    runtime = Runtime.choose(device, precision)
    if expert is not None:
        watching = WatchRecipe.of(expert, watch, recall, steps, rotate, seed, name, cache)
        return fit_expert(images, annotations, watching, runtime, channels, value_range, progress=progress)
    pairs = load_pairs(images, annotations, channels, value_range)
    labels = find_labels([a for _, a in pairs])
    sizes = measure([a for _, a in pairs], labels, object_size)
    planes = geometry if isinstance(geometry, Geometry) else choose_geometry(sizes, labels)
    depth = 1 if all(image.channels == 1 for image, _ in pairs) else 3
    spec = refiner_spec(depth, labels, sizes, planes)
    scenes, lost = _scenes(pairs, labels, planes, spec, sizes, seed, strict=planes is not geometry)
    mean, std = normalisation([image for image, _ in pairs], depth, planes.scan_downsample)
    recipe = Recipe(_fine_planes(planes), spec, depth, mean, std, rotate, steps, seed, width)
    with Progress(progress, _EXPECTED[geometry == "search"]) as bars, torch.random.fork_rng(devices=[]):
        planned = _planned(replace(recipe, geometry=planes), search=geometry == "search", built_in=base is None)
        check_cells(scenes, min(each.geometry.cell for each in planned))
        # Before any training, so that a fault of the network or its weights is reported at once.
        backbones = [_backbone(each, base, base_weights) for each in planned]
        draft = _draft(recipe, labels, name, train_refiner(recipe, scenes, runtime, bars.task("refine net")))
        draft = add_specialists(draft, recipe, scenes, runtime, specialists, cache, bars)
        answers = exhaustive_answer(draft, scenes, runtime, seed, bars.task("refine net's answer"))
        draft = replace(draft, threshold=answers.threshold)
        self_calibrated = _check_held(scenes, answers)
        price = _price(minimise, draft, scenes, runtime, seed, planned)
        setting = CalibrationSet(tuple(scenes), answers, recall, price, runtime)
        found = [
            _calibrated(each, draft, setting, backbone, bars) for each, backbone in zip(planned, backbones, strict=True)
        ]
        record, best, setting = add_activity(draft.provenance, _cheapest(found), recipe, setting, specialists, bars)
        best = add_glances(best, replace(recipe, geometry=best.model.geometry), setting, bars)
    known = {"runtime": runtime.name, "torch": str(torch.__version__), "calibrated_on_training": self_calibrated}
    cost = {"minimised": minimise, "cost": best.cost} | _tried(found)
    origin = _origin(recipe, scenes, sizes, lost) | _origin_of_base(base, base_weights)
    return replace(best.model, provenance={**best.model.provenance, **record, **origin, **known, **cost})


def _fine_planes(planes: Geometry) -> Geometry:
    """Planes with the refine net's cells, which are the base's unless a search finds larger ones."""
    scan = min(planes.scan_downsample, planes.fine_cell)
    return replace(planes, cell=planes.fine_cell, fine=1, scan_downsample=scan)


def _planned(usual: Recipe, *, search: bool, built_in: bool) -> list[Recipe]:
    return scan_candidates(usual, built_in=built_in) if search else [usual]


def _scenes(
    pairs: Sequence[tuple[Image, Annotations]],
    labels: tuple[Label, ...],
    planes: Geometry,
    spec: StackSpec,
    sizes: Sizes,
    seed: int,
    *,
    strict: bool,
) -> tuple[list[Scene], tuple[LeftOut, ...]]:
    """Scenes with their held-out parts marked, and the objects that are left out."""
    largest = largest_side(spec, planes.refine_downsample)
    smallest = smallest_side(planes.refine_downsample)
    options: dict[str, float] = {"largest": largest, "smallest": smallest, "nominal": sizes.nominal}
    scenes = [Scene(i, a, labels, fine_cell=planes.fine_cell, **options) for i, a in pairs]
    lost = check_objects(scenes, largest, smallest, strict=strict)
    if sizes.guess:
        _tell(f"points have no size: took {sizes.nominal:.3g} px ({sizes.guess}); give object_size to choose")
    if lost:
        _tell(f"left out, objects must have {smallest:,.0f} to {largest:,.0f} px: {'; '.join(map(str, lost))}")
    hold_back(scenes, _HELD_SHARE, np.random.default_rng(seed))
    return scenes, lost


def _price(
    minimise: str, draft: Model, scenes: Sequence[Scene], runtime: Runtime, seed: int, planned: Sequence[Recipe]
) -> Price:
    if minimise == "macs":
        return Price("macs")
    return measure_price(draft, scenes, runtime, seed, {each.geometry.fine for each in planned})


def _check_held(scenes: Sequence[Scene], answers: Answers) -> bool:
    """Whether thresholds must be set on the training data; if so, warn the caller."""
    if self_calibrated := calibrates_on_all(scenes, answers):
        _tell(
            "hardly anything was found in the held-out parts of the scenes (of "
            f"{PART * scenes[0].fine_cell} px a side): thresholds are set on training data, and recall elsewhere may "
            "be lower; annotate larger or more scenes"
        )
    return self_calibrated


def _tell(text: str) -> None:
    """Warn the caller of `fit`."""
    warnings.warn(text, UserWarning, stacklevel=3)


def _draft(recipe: Recipe, labels: tuple[Label, ...], name: str, refiner: ConvStack) -> Model:
    """A model with a trained refine net and an untrained base."""
    return Model(
        name=name,
        geometry=recipe.geometry,
        mean=tuple(float(m) for m in recipe.mean),
        std=tuple(float(s) for s in recipe.std),
        base=ConvStack(base_spec(recipe.channels, recipe.geometry)).eval(),
        refiner=DetectionRefiner(refiner, labels, recipe.geometry.refine_downsample),
    )


def _calibrated(
    recipe: Recipe, draft: Model, setting: CalibrationSet, backbone: Base | None, bars: Progress
) -> Calibrated:
    """The model with a trained base for one geometry, thresholds set."""
    fitted = train_base(recipe, backbone, draft, setting, bars)
    model = replace(draft, geometry=recipe.geometry, base=fitted)
    return calibrate(model, setting, bars.task("calibrating"))


def _cheapest(found: Sequence[Calibrated]) -> Calibrated:
    return min(found, key=lambda each: each.cost)


def _tried(found: Sequence[Calibrated]) -> dict[str, Any]:
    """Provenance: the cost with each scan that was tried."""
    return {"cost_without_glances": {_scan_of(each.model): each.cost for each in found}}


def _scan_of(model: Model) -> str:
    g, spec = model.geometry, model.base.spec
    return f"scan 1/{g.scan_downsample}, cells of {g.cell} px, {spec.macs_per_cell / g.cell**2 / 1e3:.2f} kMAC a pixel"


def _backbone(recipe: Recipe, base: str | None, weights: Weights) -> Base | None:
    """The requested base, if any; its new parts and its random weights follow the seed."""
    if base is None:
        return None
    torch.manual_seed(recipe.seed + 1)
    stride = recipe.geometry.cell // recipe.geometry.scan_downsample
    if prefix_of(base) != TIMM:
        net = unfitted(recipe.channels, base)()
        if net.spec.stride != stride:
            raise ValueError(f"{base} has cells of {net.spec.stride} px, expected {stride} px in {recipe.geometry}")
        return net
    return make_backbone(base, weights, channels=recipe.channels, stride=stride, mean=recipe.mean, std=recipe.std)


def _origin(recipe: Recipe, scenes: Sequence[Scene], sizes: Sizes, lost: Sequence[LeftOut]) -> dict[str, Any]:
    """Provenance: data and settings of the fit."""
    return {
        "scenes": [scene.image.name for scene in scenes],
        "objects": int(sum(len(s.centre) for s in scenes)),
        "median_size": sizes.median,
        "point_size": sizes.nominal,
        "left_out": {each.label: [each.too_large, each.too_small] for each in lost},
        "steps": int(recipe.steps),
        "seed": int(recipe.seed),
        "rotate": recipe.rotate,
        KEY: Remembered.of([scene.image for scene in scenes]).to_json(),
    }


def _origin_of_base(base: str | None, weights: Weights) -> dict[str, Any]:
    """Provenance of a base that is no built-in net."""
    if base is None or prefix_of(base) != TIMM:
        return {} if base is None else {"base": base}
    source = "timm's hub" if weights is None else Path(weights).name
    return {"base": base, "base_weights": source, "timm": version("timm")}


def _check(
    recall: float,
    steps: int,
    seed: int,
    object_size: float | None,
    base: str | None,
    base_weights: Weights,
    specialists: str | None,
    geometry: Geometry | str | None,
    width: float,
) -> None:
    _check_scan(geometry, width)
    if not 0 < recall < 1:
        raise ValueError(f"recall must lie between 0 and 1, got {recall}")
    if steps % 1 != 0 or steps < 10:
        raise ValueError(f"steps must be a whole number, at least 10 (useful from some hundreds); got {steps}")
    check_seed(seed)
    if object_size is not None and not 0 < object_size < np.inf:
        raise ValueError(f"object_size must be a positive number of pixels, got {object_size}")
    if base is not None and prefix_of(base) in (None, TIMM):
        parse_network(base)
    elif base_weights is not None:
        raise ValueError("base_weights are weights of a base of timm: name it too, such as base='timm:mobilenetv2_100'")
    if specialists is not None and specialists not in MODES:
        raise ValueError(f"specialists must be None or one of {', '.join(MODES)}, got {specialists!r}")


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
