"""Benchmarks: what choosing where to look saves, and what it misses, beside the trivial rivals."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coarse2fine.bench.composite import Composition, compose
from coarse2fine.bench.data import BenchScene, Split, digit_split, load_scenes, named, splits
from coarse2fine.bench.measure import Measurement, measure
from coarse2fine.bench.probe import Probe, fit_probe
from coarse2fine.bench.report import Report
from coarse2fine.bench.score import object_boxes
from coarse2fine.engine import analyze
from coarse2fine.fitting.fit import fit
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
    """Fit on some scenes; test on the others, on which nothing was chosen, beside trivial rivals.

    Parameters
    ----------
    data : Path, optional
        Folder of images with GeoJSON of the same names beside them; without it, synthetic scenes of digits.
    test : sequence of str
        Names of the test scenes; by default every scene is left out once, in folds.
    folds : int
        At least 2; where there are fewer scenes, each is a fold.
    seeds : int
        How often all of it is done, each time with another seed.
    steps : int
        Optimisation steps of each net.
    quick : bool
        Only the first of the folds.
    model : str, optional
        A fitted model to test instead of fitting any; all scenes are then tested, or those of `test`.
    composite : Composition, optional
        Makes one large scene out of the test scenes of a fold.
    folder : Path, optional
        Where that is stored while it is needed; by default where temporary files go.
    models : Path, optional
        Folder in which fitted models are kept, and found again by a later run with the same data, seed and steps.
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
    found: list[Measurement] = []
    with _Composites(composite, folder, rotate=data is not None) as composites:
        for seed in range(seeds):
            for number, part in enumerate(parts):
                title = f"seed {seed + 1}/{seeds}, fold {number + 1}/{len(parts)}"
                fitting = _Fitting(part, title, rotate=data is not None, steps=steps, seed=seed, progress=progress)
                fitted = known or fitting.model(models and models / f"fold-{number}-seed-{seed}.c2f")
                probe = _probe(part, fitted, seed)
                scenes = composites.of(number, seed, part, fitted)
                found += _measure_all(fitted, scenes, probe, seed, title, progress=progress)
    if not parts[0].train:
        notes.append("no scene is left to fit the rival probe on: it is left out")
    notes += composites.notes + [note for m in found for note in m.notes]
    if any(m.facts.chunks_assumed for m in found):
        notes.append("images that are stored whole count as if in chunks of 256 x 256 pixels")
    parameters = {"data": data and data.name, "model": known and known.name, "steps": steps, "quick": quick}
    return Report(
        outcomes=tuple(o for m in found for o in m.outcomes),
        curves=tuple(c for m in found for c in m.curves),
        audits=tuple(a for m in found for a in m.audits),
        facts=tuple(m.facts for m in found),
        notes=tuple(dict.fromkeys(notes)),
        folds=tuple({"fit": [s.name for s in p.train], "test": [s.name for s in p.test]} for p in parts),
        seeds=tuple(range(seeds)),
        parameters={**parameters, "composite": composite and asdict(composite)},
    )


class _Composites:
    """The scenes to test of each fold: themselves, or one made of them; a context manager that removes what it made."""

    def __init__(self, composition: Composition | None, folder: Path | None, *, rotate: bool) -> None:
        self._composition, self._rotate = composition, rotate
        self._folder = tempfile.TemporaryDirectory(dir=folder, prefix="composite-", ignore_cleanup_errors=True)
        self._made: dict[tuple[int, int], BenchScene] = {}
        self.notes: list[str] = []

    def __enter__(self) -> _Composites:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def of(self, fold: int, seed: int, part: Split, model: Model) -> Sequence[BenchScene]:
        """Made once for a fold; where there is ground, for each model, of whose finds it is free."""
        if self._composition is None:
            return part.test
        bare = self._composition.density < 1
        key = fold, seed if bare else 0
        if key not in self._made:
            path = Path(self._folder.name) / f"fold-{fold}-{key[1]}.zarr"
            occupied = [_occupied(scene, model) for scene in part.test] if bare else []
            self._made[key] = compose(
                part.test, self._composition, path, rotate=self._rotate, seed=fold, occupied=occupied
            )
            self.notes.append(_about(self._made[key], self._composition, turned=self._rotate))
        return [self._made[key]]


def _occupied(scene: BenchScene, model: Model) -> NDArray[np.float64]:
    """Boxes of what is labelled and of what the model's exhaustive pass finds, or nearly does."""
    # Turned and shifted, what lies just below the threshold comes above it here and there.
    low = _NEARLY * model.threshold
    with analyze(scene.image, model, budget=1.0, threshold=low, audit=0) as analysis:
        finds = np.array([r.full_box for r in analysis.regions], np.float64).reshape(-1, 4)
    return np.concatenate([object_boxes(scene.truth, model), finds])


def _about(scene: BenchScene, composition: Composition, *, turned: bool) -> str:
    tiles = f"a COMPOSITE, not a real scene: tiles cut from the test scenes at random{', turned' if turned else ''}"
    if composition.density == 1:
        return f"{scene.name} is {tiles}"
    return (
        f"{scene.name} is {tiles}, on {composition.density:.1%} of its places; the rest is ground made of places "
        "of these scenes in which neither labels nor the exhaustive pass of the model under test have anything, even "
        "at a tenth of its threshold"
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


@dataclass(frozen=True)
class _Fitting:
    part: Split
    title: str
    rotate: bool
    steps: int
    seed: int
    progress: bool

    def model(self, path: Path | None) -> Model:
        """Fitted, or found as an earlier run has left it."""
        if path is None:
            return self._fit()
        if not path.exists() or not self._is_ours(found := load_model(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            found = self._fit()
            found.save(path)
        return found

    def _is_ours(self, model: Model) -> bool:
        wanted = {"scenes": [s.name for s in self.part.train], "steps": self.steps, "seed": self.seed}
        return all(model.provenance.get(key) == value for key, value in wanted.items())

    def _fit(self) -> Model:
        return fit(
            [s.image for s in self.part.train],
            [s.annotations for s in self.part.train],
            rotate=self.rotate,
            steps=self.steps,
            specialists=None,  # they are measured by themselves
            seed=self.seed,
            name=self.title,
            progress=self.progress,
        )


def _probe(part: Split, model: Model, seed: int) -> Probe | None:
    """The rival that learns, fitted on what the model was; None without such scenes."""
    if not part.train or model.task != "detect":
        return None
    return fit_probe(_opened(part.train), model, Runtime.choose(), seed)


def _opened(scenes: Sequence[BenchScene]) -> Iterator[Image]:
    for scene in scenes:
        with open_image(scene.image) as image:
            yield image


def _measure_all(
    model: Model, scenes: Sequence[BenchScene], probe: Probe | None, seed: int, title: str, *, progress: bool
) -> list[Measurement]:
    with Progress(progress) as bars:
        return [measure(model, scene, seed, probe=probe, tick=bars.task(f"{title}: {scene.name}")) for scene in scenes]
