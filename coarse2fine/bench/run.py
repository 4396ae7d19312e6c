"""Scenes benchmark: cost and recall of choosing windows, compared with trivial rivals (baselines)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.bench.composite import Composition, compose
from coarse2fine.bench.data import BenchScene, Split, digit_split, load_scenes, named, splits
from coarse2fine.bench.measure import measure
from coarse2fine.bench.probe import Probe, fit_probe
from coarse2fine.bench.report import Report
from coarse2fine.bench.results import Measurement
from coarse2fine.bench.score import object_boxes
from coarse2fine.engine import analyze
from coarse2fine.fitting.fit import fit
from coarse2fine.fitting.geometry import choose_geometry, find_labels
from coarse2fine.fitting.geometry import measure as measure_sizes
from coarse2fine.model import Model, load_model
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Progress
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image

_NEARLY = 0.1


def benchmark_scenes(
    data: Path | None = None,
    *,
    test: Sequence[str] = (),
    folds: int = 4,
    seeds: int = 5,
    steps: int = 1000,
    quick: bool = False,
    model: str | None = None,
    composite: Composition | None = None,
    folder: Path | None = None,
    models: Path | None = None,
    progress: bool = True,
) -> Report:
    """Fit on some scenes, and test on held-out ones, compared with trivial rivals.

    Parameters
    ----------
    data : Path, optional
        Folder of images with GeoJSON of the same names beside them; without it, synthetic scenes of digits.
    test : sequence of str
        Names of the test scenes; by default every scene is held out once, in folds.
    folds : int
        At least 2; if there are fewer scenes, each is a fold.
    seeds : int
        Number of repetitions, each with another seed.
    steps : int
        Optimisation steps of each net.
    quick : bool
        Whether to run only the first fold.
    model : str, optional
        A fitted model to test instead of fitting any; all scenes are then tested, or those of `test`.
    composite : Composition, optional
        If given, one large scene is made of the test scenes of a fold.
    folder : Path, optional
        Folder for the composite while it is needed; by default that of temporary files.
    models : Path, optional
        Folder for fitted models; a later run with the same data, seed and steps loads them.
    progress : bool

    Returns
    -------
    Report

    Raises
    ------
    FileNotFoundError, AnnotationError, ImageError, ModelError, ValueError
        If the data or the model cannot be read, or a parameter does not suit them.
    """
    if seeds < 1:
        raise ValueError(f"expected at least 1 seed, got {seeds}")
    known = None if model is None else load_model(model)
    parts, notes = _parts(data, test, folds, known, quick=quick)
    rotate, found, about = data is not None, list[Measurement](), list[str]()
    made: dict[tuple[int, int], BenchScene] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix="composite-", ignore_cleanup_errors=True) as scratch:
        for seed, (number, part) in product(range(seeds), enumerate(parts)):
            title = f"seed {seed + 1}/{seeds}, fold {number + 1}/{len(parts)}"
            path = models and models / f"fold-{number}-seed-{seed}.c2f"
            options = {"rotate": rotate, "steps": steps, "seed": seed, "name": title, "progress": progress}
            fitted = known or _fitted(part.train, path, **options)
            probe = _probe(part, fitted, seed)
            scenes = part.test
            if composite is not None:
                # A composite with background depends on the model, which must find nothing in the background.
                key = number, seed if composite.density < 1 else 0
                if key not in made:
                    target = Path(scratch) / f"fold-{number}-{key[1]}.zarr"
                    occupied = [_occupied(scene, fitted) for scene in part.test] if composite.density < 1 else []
                    made[key] = compose(part.test, composite, target, rotate=rotate, seed=number, occupied=occupied)
                    about.append(_about(made[key], composite, turned=rotate))
                scenes = (made[key],)
            with Progress(progress) as bars:
                for scene in scenes:
                    tick = bars.task(f"{title}: {scene.name}")
                    found.append(measure(fitted, scene, seed, probe=probe, tick=tick))
    if not parts[0].train:
        notes.append("the rival probe is left out: there is no scene to fit it on")
    notes += about + [note for m in found for note in m.notes]
    if any(m.facts.chunks_assumed for m in found):
        notes.append("images that are stored whole count as if in chunks of 256 x 256 pixels")
    parameters = {"data": data and data.name, "model": known and known.name, "steps": steps, "quick": quick}
    return Report(
        measurements=tuple(found),
        notes=tuple(dict.fromkeys(notes)),
        folds=tuple({"fit": [s.name for s in p.train], "test": [s.name for s in p.test]} for p in parts),
        seeds=tuple(range(seeds)),
        parameters={**parameters, "composite": composite and asdict(composite)},
    )


def _occupied(scene: BenchScene, model: Model) -> NDArray[np.float64]:
    """Boxes of labelled objects, and of the exhaustive pass's finds down to a tenth of the model's threshold."""
    # Scores just below the threshold may exceed it after rotation and shift.
    low = _NEARLY * model.threshold
    with analyze(scene.image, model, budget=1.0, threshold=low, audit=0) as analysis:
        finds = np.array([r.full_box for r in analysis.regions], np.float64).reshape(-1, 4)
    return np.concatenate([object_boxes(scene.truth, model), finds])


def _about(scene: BenchScene, composition: Composition, *, turned: bool) -> str:
    tiles = f"a COMPOSITE, not a real scene: tiles cut from the test scenes at random{', rotated' if turned else ''}"
    if composition.density == 1:
        return f"{scene.name} is {tiles}"
    return (
        f"{scene.name} is {tiles}, on {composition.density:.1%} of its area; the rest is background made of places "
        "of these scenes without labels and without finds of the tested model's exhaustive pass, even at a tenth of "
        "its threshold"
    )


def _parts(
    data: Path | None, test: Sequence[str], folds: int, known: Model | None, *, quick: bool
) -> tuple[list[Split], list[str]]:
    notes: list[str] = []
    if data is not None:
        scenes, notes = load_scenes(data)
        if known is None:
            return splits(scenes, test, folds)[: 1 if quick else None], notes
        chosen = named(scenes, test) if test else tuple(scenes)
        rest = tuple(s for s in scenes if s not in chosen)
    else:
        if test:
            raise ValueError("test scenes can be named only in a folder of scenes; give one, or name none")
        part = digit_split()
        if known is None:
            return [part], notes
        chosen, rest = part.test, part.train
    seen = sorted({s.name for s in chosen} & set(known.provenance.get("scenes", ())))
    if seen:
        notes.append(f"NOT A TEST: {known.name} was fitted on scenes of these names: {', '.join(seen)}")
    return [Split(rest, chosen)], notes


def _fitted(train: Sequence[BenchScene], path: Path | None, **options: Any) -> Model:
    """A model fitted on scenes, or loaded from `path` if an earlier run saved it with the same settings."""
    wanted = {"scenes": [s.name for s in train], "steps": options["steps"], "seed": options["seed"]}
    if path is not None and path.exists():
        found = load_model(path)
        if all(found.provenance.get(key) == value for key, value in wanted.items()):
            return found
    truth = [scene.truth for scene in train]
    labels = find_labels(truth)
    # One band of object sizes: methods are compared on one plane. Specialists have a benchmark of their own.
    options |= {"geometry": choose_geometry(measure_sizes(truth, labels, None), labels), "specialists": None}
    model = fit([s.image for s in train], [s.annotations for s in train], **options)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
    return model


def _probe(part: Split, model: Model, seed: int) -> Probe | None:
    """The rival that learns, fitted on the same scenes as the model; None without such scenes."""
    if not part.train or model.refiner.learns:
        return None

    def opened() -> Iterator[Image]:
        for scene in part.train:
            with open_image(scene.image) as image:
                yield image

    return fit_probe(opened(), model, Runtime.choose(), seed)
