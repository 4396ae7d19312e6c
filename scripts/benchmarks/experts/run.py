"""Benchmark of experts: real models behind the scan on scenes made here, beside other choices of tiles and tools."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.experts import scenes, training
from benchmarks.experts.rivals import Part, compare_rivals
from benchmarks.experts.scenes import ExpertScene, Sizes
from coarse2fine.bench.expert_answers import all_answers
from coarse2fine.bench.expert_run import EXPLAINED, fit_by_watching, identity_of, measure_expert, sections_of
from coarse2fine.bench.sections import SectionReport
from coarse2fine.experts.expert import Expert, expert
from coarse2fine.model import Model
from coarse2fine.preprocess import as_channels
from coarse2fine.progress import Progress
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import ImageSource, open_image

_EXPLAINED = (
    *EXPLAINED,
    "part/...: a square of tiles with many finds, all of them run by our exhaustive pass (ours@1), a plain loop, SAHI "
    "and supervision, with the same tiles (overlap = 2 x context; edges repeated by hand). same: the lesser of the "
    "shares of its finds that the plain loop has and of the plain loop's that it has. They keep the best of "
    "overlapping boxes of all slices, whole or cut; a plain loop and ours drop boxes whose centre lies in the context "
    "before that: so finds may differ where the expert answers otherwise at the edge of what it reads.",
    "digits, sheet, mars: scenes to fit on differ from seed to seed, the scene to test on does not. experts: unet and "
    "rcnn are trained here, text is the DBNet of rapidocr-onnxruntime, encoder is MobileNetV2 of timm with an interest "
    "by distance to the usual. Multiply-adds of text are estimated from time.",
)
# Lines of a printed model that are repeated as notes.
_SAID = re.compile("no use|choice between|alternative")
_LEAST_CRATER = 12.0
_ENCODER_WEIGHTS = "mobilenetv2_100_tf2ptq.safetensors"
_CELL_TILES = {"unet": (128, 32), "unet_small": (128, 32), "text": (192, 32), "rcnn": (224, 48), "encoder": (224, 0)}


@dataclass(frozen=True)
class ExpertScale:
    """Extent of the benchmark.

    Parameters
    ----------
    sizes : Sizes
    seeds : int
    trained : int
        Optimisation steps of the experts that are trained here.
    steps : int or None
        Optimisation steps of `fit`; None for its own.
    watch : float
        Share of the tiles to fit on that the expert sees.
    part : int
        Tiles along a side of the part on which other tools are compared.
    pairs : tuple of str
        ``scene/expert``, or ``scene/expert+alternative``.
    """

    sizes: Sizes
    seeds: int
    trained: int
    steps: int | None
    watch: float
    part: int
    pairs: tuple[str, ...]


PAIRS = (
    "digits/unet",
    "sheet/text",
    "mars-sparse/unet",
    "mars-sparse/rcnn",
    "mars-sparse/encoder",
    "mars-dense/unet",
    "mars-dense/unet+unet_small",
    "digits/unet+unet_small",
    "pages/text",
)
FULL = ExpertScale(Sizes((32_768, 16_384), (22_400, 11_200), (200.0, 40.0)), 3, 600, None, 0.1, 12, PAIRS)
MIDDLE = ExpertScale(
    Sizes((8192, 8192), (5600, 5600), (24.0, 12.0), 4.0),
    3,
    300,
    400,
    0.1,
    6,
    ("digits/unet", "sheet/text", "mars-sparse/unet"),
)
QUICK = ExpertScale(
    Sizes((2048, 2048), (2048, 2048), (4.0, 4.0), 8.0), 1, 40, 60, 0.3, 3, ("digits/unet", "sheet/text", "pages/text")
)


def benchmark_experts(out: Path, *, data: Path | None = None, scale: ExpertScale = FULL) -> SectionReport:
    """Measure experts behind the scan.

    Parameters
    ----------
    out : Path
        Existing folder; scenes, weights and answers are kept in "experts" in it.
    data : Path, optional
        Folder with "mars" (scenes with GeoJSON) and "weights"; what needs them is left out without it.
    scale : ExpertScale

    Returns
    -------
    SectionReport

    Raises
    ------
    ValueError
        If a pair is unknown, or there is no seed.
    """
    if unknown := sorted(set(scale.pairs) - set(PAIRS)):
        raise ValueError(f"no pair of scene and expert is named {unknown[0]}; there are {', '.join(PAIRS)}")
    if scale.seeds < 1:
        raise ValueError(f"expected at least 1 seed, got {scale.seeds}")
    place = out / "experts"
    place.mkdir(exist_ok=True)
    runs: list[dict[str, float]] = []
    notes: list[str] = []
    with Progress(True) as bars:
        for pair in scale.pairs:
            for seed in range(scale.seeds):
                try:
                    found, said = _measured(pair, place, data, scale, seed, bars)
                except (ImportError, FileNotFoundError, ValueError) as error:  # such as an expert that finds nothing
                    notes.append(f"{pair} is left out: {error}")
                    break
                runs.append({f"{pair}/{name}": value for name, value in found.items()})
                notes += said
    sections = sections_of("experts behind the scan", runs)
    return SectionReport("experts", sections, tuple(range(scale.seeds)), asdict(scale), _EXPLAINED, notes)


def _measured(
    pair: str, place: Path, data: Path | None, scale: ExpertScale, seed: int, bars: Progress
) -> tuple[dict[str, float], list[str]]:
    """Figures of one pair and seed, with notes."""
    scene_name, _, expert_names = pair.partition("/")
    made, *others = (
        make_expert(name, scene_name, place, data, scale.trained, bars) for name in expert_names.split("+")
    )
    scene = make_scene(scene_name, place, data, scale.sizes, seed)
    made = made.check(scene.train[0]).expert
    fitted = fit_by_watching(scene.train, made, watch=scale.watch, seed=seed, steps=scale.steps, alternatives=others)
    tick = bars.task(f"{pair}, seed {seed}")
    found = dict(fitted.figures) | measure_expert(
        fitted.model, scene.test, seed=seed, folder=place / "answers", tick=tick
    )
    notes = [f"{pair}: {line}" for line in str(fitted.model).splitlines() if _SAID.search(line)]
    if seed == 0 and not others:
        figures, said = compare_rivals(
            fitted.model, busiest_part(fitted.model, scene.test, place / "answers", scale.part)
        )
        found |= {f"part/{name}": value for name, value in figures.items()}
        notes += said
    return found, notes


def busiest_part(model: Model, source: ImageSource, folder: Path, side: int) -> Part:
    """The square of whole tiles, `side` tiles long or as many as there are, with most finds."""
    made = model.expert
    assert made is not None
    with open_image(source) as image:
        counts = all_answers(made, image, folder, identity_of(source)).counts
        whole = image.height // made.tile, image.width // made.tile
        sides = [min(side, n) for n in whole]
        if min(sides) < 1:
            raise ValueError(f"the scene {image.name} is smaller than a tile of {made.tile} px")
        sums = np.lib.stride_tricks.sliding_window_view(counts[: whole[0], : whole[1]], sides).sum(axis=(2, 3))
        y, x = np.unravel_index(int(sums.argmax()), sums.shape)
        box = Box(int(y), int(x), int(y) + sides[0], int(x) + sides[1]).scale(made.tile)
        pixels: NDArray[np.uint8] = np.ascontiguousarray(as_channels(image.read(box), 3))
    return Part.of(made, pixels)


def make_scene(name: str, place: Path, data: Path | None, sizes: Sizes, seed: int) -> ExpertScene:
    """A scene by its name, kept in `place`; FileNotFoundError if it needs data that are not there."""
    if name.startswith("mars"):
        return scenes.mars(place, sizes, seed, _folder(data), dense=name == "mars-dense")
    makers: Mapping[str, Callable[[], ExpertScene]] = {
        "digits": partial(scenes.digits, place, sizes, seed),
        "sheet": partial(scenes.sheet, place, sizes, seed),
        "pages": scenes.pages,
    }
    return makers[name]()


def make_expert(name: str, scene: str, place: Path, data: Path | None, steps: int, bars: Progress) -> Expert:
    """An expert by its name, trained for a scene if it must be; its weights are kept in `place`."""
    tile, context = _CELL_TILES[name]
    made = partial(expert, tile=tile, context=context)
    home = "benchmarks.experts.models"
    if name == "text":
        return made(f"{home}:text_detector", kind="map", areas=False, labels=["text"], confidence=0.3)
    if name == "encoder":
        weights = _folder(data) / "weights" / _ENCODER_WEIGHTS
        usual = training.usual_vectors(place / "usual.npz", weights, _craters(data), tile)
        return made(
            f"{home}:encoder", interest=f"{home}:unusual", labels=["unusual"], weights=str(weights), usual=str(usual)
        )
    learned = "digit" if scene == "digits" else "crater"
    lessons = training.digit_lessons() if learned == "digit" else _craters(data)
    train = training.train_rcnn if name == "rcnn" else partial(training.train_unet, name=name)
    tick = bars.task(f"training {name} on {learned}s")
    weights = train(place / f"{name}-{learned}-{steps}.pt", lessons, steps=steps, tick=tick)
    return made(f"{home}:{name}", labels=[learned], areas=False, weights=str(weights))


def _craters(data: Path | None) -> Sequence[training.Lesson]:
    return training.annotated_lessons(scenes.mars_scenes(_folder(data))[0], _LEAST_CRATER)


def _folder(data: Path | None) -> Path:
    if data is None:
        raise FileNotFoundError('it needs data: give --data, a folder with "mars" and "weights"')
    return data
