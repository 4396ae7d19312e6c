"""Precision and recall of the closer look beside detectors of torchvision, trained on the same scenes for as long."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.detectors.nets import FLOOR, MOST, RCNN, RETINA, Shape, detector
from benchmarks.detectors.precision import Outcomes
from benchmarks.detectors.training import Drawing, lessons_of, train
from coarse2fine.bench.data import BenchScene, Split, load_scenes, splits
from coarse2fine.bench.expert_answers import all_finds
from coarse2fine.bench.results import mean
from coarse2fine.bench.score import Labelled, object_boxes
from coarse2fine.bench.sections import Section, SectionReport
from coarse2fine.engine import analyze
from coarse2fine.experts.check import check_expert
from coarse2fine.experts.expert import Expert, expert
from coarse2fine.experts.suppress import suppress_across
from coarse2fine.fitting.crops import normalisation
from coarse2fine.fitting.fit import fit
from coarse2fine.fitting.forecast import OBJECTS
from coarse2fine.model import Model, load_model
from coarse2fine.progress import Moment, listening
from coarse2fine.region import Region
from coarse2fine.results.json_file import write_json
from coarse2fine.terminal import say
from coarse2fine.tiling.opening import open_image

OURS, PRETRAINED = "coarse2fine", f"{RETINA}, weights"
_OVERLAP = 0.5
_EXPLAINED = (
    "coarse2fine: the exhaustive pass of a model without specialists, in float32. Faster R-CNN (MobileNetV3-large) and "
    "RetinaNet (MobileNetV2, group normalisation) are torchvision's, with a pyramid of 64 channels; its levels and the "
    "scale of the input follow the objects' sizes. weights: the backbone starts from a file of weights. They are "
    "trained on crops of the same scenes, half of them around an object, turned and in varied light as in a fit, for "
    "as many seconds of processor time as the whole fit took, and run as experts on all tiles.",
    "AP: area under the interpolated curve of precision against recall of all finds with a score of at least "
    f"{FLOOR:g}, mean of the classes. F1: the best at one threshold for all classes, set on the test scenes "
    "themselves. centres: a find is an object if their centres are at most a cell of the fitted model or half the "
    f"object's longer side apart. IoU: if their boxes' IoU is at least {_OVERLAP:g}. recall, precision: by centres, at "
    "the best F1; found: objects found at any threshold; sizes: thirds of the test scenes' objects by the root of the "
    "box's area.",
    "kMAC: thousands of multiply-adds for a pixel of the image, halos and context included. s: seconds of processor "
    "time, in training (refine net s: of the refine net alone) and for a megapixel of the exhaustive pass, with "
    "reading. steps: of the refine nets, or of the detector.",
)


@dataclass(frozen=True)
class Scale:
    """Size of the benchmark: seeds, and the most optimisation steps of each of our nets."""

    seeds: int
    steps: int


FULL, QUICK = Scale(3, 1000), Scale(1, 60)


def benchmark_detectors(
    out: Path, *, data: Path, test: Sequence[str], weights: Path | None = None, scale: Scale = FULL
) -> SectionReport:
    """Fit and train on scenes of a folder, and measure on those named as test scenes.

    Figures of each seed and net are stored in `out`, which must exist, and a second run with the same data goes on from
    there. Data sets are identified by name: use another folder for other data of the same name.

    Parameters
    ----------
    out, data : Path
    test : sequence of str
        Names of the test scenes, at least one.
    weights : Path, optional
        Weights of timm's ``mobilenetv2_100`` for one more RetinaNet.
    scale : Scale
    """
    if not test or scale.seeds < 1:
        raise ValueError(f"expected test scenes and at least one seed, got {list(test)} and {scale.seeds}")
    scenes, notes = load_scenes(data)
    split = splits(scenes, test, 2)[0]
    names = (OURS, RCNN, RETINA, *(() if weights is None else (PRETRAINED,)))
    rows = [_Seed(out, data.name, split, seed, scale.steps, weights).figures(names) for seed in range(scale.seeds)]
    tested = ", ".join(scene.name for scene in split.test)
    tables = [Section(f"{title}, {tested}", _means(rows, names, title)) for title in rows[0][OURS]]
    parameters = {
        "data": data.name,
        "train": [scene.name for scene in split.train],
        "test": [scene.name for scene in split.test],
        "weights": weights and weights.name,
        **asdict(scale),
    }
    return SectionReport("detectors", tables, range(scale.seeds), parameters, _EXPLAINED, notes)


def _means(rows: Sequence[Mapping[str, Any]], names: Sequence[str], title: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in names:
        for column in rows[0][name][title]:
            # JSON has no NaN: what is not defined is null there.
            values = [row[name][title][column] for row in rows]
            found |= mean(f"{name}/{column}", [float("nan") if v is None else v for v in values])
    return found


@dataclass(frozen=True, eq=False)
class _Seed:
    """Fits and trainings with one seed."""

    out: Path
    data: str
    split: Split
    seed: int
    steps: int
    weights: Path | None

    @property
    def _key(self) -> dict[str, Any]:
        parts = {name: [s.name for s in getattr(self.split, name)] for name in ("train", "test")}
        return {"data": self.data, "seed": self.seed, "steps": self.steps, **parts}

    def _path(self, name: str) -> Path:
        plain = "".join(c if c.isalnum() else "-" for c in name.lower())
        return self.out / f"detectors-{self.data}-{self.seed}-{plain}"

    def figures(self, names: Sequence[str]) -> dict[str, Any]:
        """Tables of figures of each net; stored ones are read."""
        fitted = self._path(OURS).with_suffix(".c2f")
        known = self._stored(OURS) if fitted.is_file() else None
        if known is None:
            model, known = self._ours(fitted)
        else:
            model = load_model(fitted)
        seconds, found = known["cost"]["training s"], {OURS: known}
        for name in names[1:]:
            found[name] = self._stored(name, seconds) or self._rival(name, model, seconds)
        return found

    def _stored(self, name: str, seconds: float = 0.0) -> dict[str, Any] | None:
        path = self._path(name).with_suffix(".json")
        if not path.is_file():
            return None
        stored = json.loads(path.read_text("utf-8"))
        tables: dict[str, Any] = stored["tables"]
        return tables if stored["key"] == self._key | {"as long as": seconds} else None

    def _store(self, name: str, tables: dict[str, Any], seconds: float = 0.0) -> dict[str, Any]:
        write_json(
            self._path(name).with_suffix(".json"), {"key": self._key | {"as long as": seconds}, "tables": tables}
        )
        say(f"seed {self.seed}, {name}: {tables['quality']}, {tables['cost']}")
        return tables

    def _ours(self, path: Path) -> tuple[Model, dict[str, Any]]:
        looking = _Looking()
        images, truths = ([getattr(s, kind) for s in self.split.train] for kind in ("image", "annotations"))
        start = time.process_time()
        with warnings.catch_warnings(), listening(looking):
            warnings.simplefilter("ignore", UserWarning)
            model = fit(
                images,
                truths,
                steps=self.steps,
                seed=self.seed,
                specialists=None,
                name=self.data,
                device="cpu",
                precision="fp32",
                progress=False,
            )
        seconds = time.process_time() - start
        measured = _Measured()
        for scene in self.split.test:
            start = time.process_time()
            options: dict[str, Any] = {"budget": 1.0, "threshold": FLOOR, "audit": 0.0, "precision": "fp32"}
            with warnings.catch_warnings(), analyze(scene.image, model, device="cpu", **options) as analysis:
                pixels = analysis.image.height * analysis.image.width
                measured.add(scene, model, analysis.regions, analysis.cost.macs, pixels, time.process_time() - start)
        steps = sum(int(band.provenance.get("steps_taken", 0)) for band in model.bands)
        tables = measured.tables({"training s": seconds, "refine net s": looking.seconds, "steps": steps})
        model.save(path)
        return model, self._store(OURS, tables)

    def _rival(self, name: str, model: Model, seconds: float) -> dict[str, Any]:
        labels = [label.name for label in model.labels if label.kind == "object"]
        boxes = np.concatenate([object_boxes(scene.truth, model) for scene in self.split.train])
        shape = Shape.of(name, (boxes[:, 2:] - boxes[:, :2]).clip(min=1))
        pretrained = name == PRETRAINED
        with torch.random.fork_rng(devices=[]), lessons_of(self.split.train, model) as lessons:
            torch.manual_seed(self.seed)
            mean_, std = normalisation([lesson.image for lesson in lessons], 3, 1)
            net = detector(
                RCNN if name == RCNN else RETINA, shape, len(labels), mean_, std, self.weights if pretrained else None
            )
            drawing = Drawing(lessons, shape.crop, std, int(name == RCNN))
            start = time.process_time()
            steps = train(net, drawing, seconds, self.seed, pretrained=pretrained)
            spent = time.process_time() - start
        rival = as_expert(net, shape, labels)
        measured = _Measured()
        for scene in self.split.test:
            measured.add_expert(rival, scene, model)
        return self._store(name, measured.tables({"training s": spent, "steps": steps}), seconds)


class _Looking:
    """Processor time that a fit spends on the training of refine nets, by the progress that it reports."""

    def __init__(self) -> None:
        self.seconds, self._last = 0.0, time.process_time()

    def __call__(self, moment: Moment) -> None:
        now = time.process_time()
        if moment.step == OBJECTS:
            self.seconds += now - self._last
        self._last = now


def as_expert(net: torch.nn.Module, shape: Shape, labels: Sequence[str]) -> Expert:
    """A trained detector on tiles, scaled as in its training."""
    side = round((shape.tile + 2 * shape.context) * shape.scale)
    return expert(
        net,
        tile=shape.tile,
        context=shape.context,
        labels=labels,
        confidence=FLOOR,
        most=MOST,
        min_size=side,
        device="cpu",
    )


def expert_finds(run: Expert, scene: BenchScene) -> list[Region]:
    """What an expert finds in all tiles of a scene, as in an exhaustive pass."""
    with open_image(scene.image) as image:
        every = suppress_across(all_finds(run, image), run.overlap)
        high = np.array([image.height, image.width] * 2)
    boxes = (every.boxes.astype(np.float64) * run.cell * run.downsample).clip(0, high)
    return [
        Region(run.labels[label].name, min(score, 1.0), (box[0], box[1], box[2], box[3]))
        for label, score, box in zip(every.labels.tolist(), every.scores.tolist(), boxes.tolist(), strict=True)
        if box[2] > box[0] and box[3] > box[1]
    ]


class _Measured:
    """Outcomes and costs of one net on the test scenes."""

    def __init__(self) -> None:
        self._outcomes: dict[str, list[Outcomes]] = {"centres": [], "IoU": []}
        self._macs, self._pixels, self._seconds = 0, 0, 0.0

    def add(
        self, scene: BenchScene, model: Model, regions: Sequence[Region], macs: int, pixels: int, seconds: float
    ) -> None:
        """Count the finds of an exhaustive pass, and what it cost."""
        labelled = Labelled(scene.truth, model)
        for rule, overlap in (("centres", None), ("IoU", _OVERLAP)):
            self._outcomes[rule].append(Outcomes.of(labelled, regions, overlap))
        self._macs, self._pixels, self._seconds = self._macs + macs, self._pixels + pixels, self._seconds + seconds

    def add_expert(self, run: Expert, scene: BenchScene, model: Model) -> None:
        """Run an expert on all tiles of a scene."""
        with open_image(scene.image) as image:
            checked = check_expert(run, image).expert
            rows, columns = run.grid(image)
            pixels = image.height * image.width
        start = time.process_time()
        regions = expert_finds(checked, scene)
        seconds = time.process_time() - start
        self.add(scene, model, regions, rows * columns * checked.tile_macs, pixels, seconds)

    def tables(self, training: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Figures by table and column."""
        whole = {rule: Outcomes.together(parts) for rule, parts in self._outcomes.items()}
        best = {rule: outcomes.best() for rule, outcomes in whole.items()}
        quality: dict[str, float] = {}
        for rule, outcomes in whole.items():
            quality |= {f"AP {rule}": outcomes.average_precision(), f"F1 {rule}": best[rule].f1}
        finds, at = whole["centres"], best["centres"]
        a, b = np.quantile(finds.object_sides, (1 / 3, 2 / 3)).tolist() if len(finds.object_sides) else (0.0, 0.0)
        recalls = {
            "recall": at.recall,
            "precision": at.precision,
            f"recall below {a:.0f} px": finds.recall(at.threshold, 0, a),
            f"{a:.0f} to {b:.0f} px": finds.recall(at.threshold, a, b),
            f"from {b:.0f} px": finds.recall(at.threshold, b),
            "found": finds.found(),
            "found, IoU": whole["IoU"].found(),
        }
        cost = {
            "kMAC": self._macs / self._pixels / 1e3,
            "s a megapixel": self._seconds / self._pixels * 1e6,
            **training,
        }
        return {"quality": quality, "at the best F1": recalls, "cost": cost}
