"""Train the embedded models: ``python scripts/train.py NAME --data DIR [-o FILE]``.

digits   handwritten digits in cluttered scenes; needs scikit-learn, no data folder.
craters  Mars craters; DIR/mars holds the scenes and annotations of aliFrancis/mars-crater-catalogue (CC BY 4.0).
glyphs   letters of thirteen scripts in cluttered scenes, each named by a net with forks; no data folder.
generic  no labels; images in DIR/mars, DIR/rbc/images and DIR/formats, of scikit-image, and a scene of digits.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import coarse2fine as c2f
from coarse2fine.demo.digit_scene import DigitScene
from coarse2fine.demo.glyph_scene import GlyphScene
from coarse2fine.fitting.classes.fit_classifier import TrunkPlan, fit_classifier, one_class
from coarse2fine.fitting.classes.found_boxes import found_boxes
from coarse2fine.fitting.explorer import fit_explorer
from coarse2fine.fitting.pairs import load_pairs
from coarse2fine.fitting.task import Schedule, bands_of, prepare
from coarse2fine.fitting.teacher import exhaustive_answer
from coarse2fine.models.runtime import Runtime
from coarse2fine.tiling.geometry import Box

EMBEDDED = Path(__file__).resolve().parent.parent / "models" / "embedded"
# A crater that only one of six annotators marked counts neither as a crater nor as background.
LEAST_CONFIDENCE = 2


def main() -> None:
    """Train one embedded model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the training images")
    parser.add_argument("--steps", type=int, help="optimisation steps of each net")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="model file to write (default: the embedded model)")
    arguments = parser.parse_args()
    options = {"seed": arguments.seed, "name": arguments.name}
    if arguments.steps:
        options["steps"] = arguments.steps
    model = RECIPES[arguments.name](arguments.data, options)
    target = model.save(arguments.output or EMBEDDED / f"{arguments.name}.c2f")
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")
    print(json.dumps(dict(model.provenance), indent=2))


def digits(_: Path, options: dict[str, Any]) -> c2f.Model:
    """Fit to three scenes of training handwriting; the demo has other handwriting on other backgrounds."""
    scenes = [DigitScene(4096, 4096, digits=500, clutter=1200, seed=s, handwriting="train") for s in (101, 102, 103)]
    images = [scene.block(Box(0, 0, 4096, 4096)) for scene in scenes]
    # No rotation, which would make a six a nine. Most of the cost is the scan, so high recall costs little.
    # No specialists: embedded models are small.
    defaults = {"rotate": False, "recall": 0.99, "steps": 1500, "specialists": None}
    return c2f.fit(images, [s.annotations() for s in scenes], **{**defaults, **options})


def glyphs(_: Path, options: dict[str, Any]) -> c2f.Model:
    """Fit to scenes of letters of DejaVu Sans, which are all found as one class and then named one by one."""
    scenes = [GlyphScene(2048, 2048, letters=700, clutter=200, seed=seed) for seed in range(201, 225)]
    images = [scene.block(Box(0, 0, 2048, 2048)) for scene in scenes]
    defaults = {"rotate": False, "steps": 600, "specialists": None}
    annotations = [s.annotations() for s in scenes]
    return _named_better(c2f.fit(images, annotations, **{**defaults, **options}), images, annotations)


def _named_better(model: c2f.Model, images: list[Any], annotations: list[Any]) -> c2f.Model:
    """The model with a classifier that learned from four times the usual samples: a letter has some twenty drawings."""
    pairs, _ = one_class(load_pairs(images, annotations, None, None))
    seed = int(model.provenance["seed"])
    (band,) = bands_of(pairs, None, None, model.geometry)
    task = prepare(pairs, band, None, Schedule(rotate=False, steps=600, seed=seed, width=1.0), strict=True)
    answers = exhaustive_answer(model, task.scenes, Runtime.choose(), seed)
    assert model.classifier is not None
    usual = TrunkPlan.usual(len(model.classifier.labels), 600)
    plan = replace(usual, samples=2_400_000, more=1_600_000)
    found = found_boxes(task.scenes, answers, model.areas)
    classifier, known = fit_classifier(task.scenes, found, task.recipe, plan=plan)
    return replace(model, classifier=classifier, provenance={**model.provenance, "classifier": known})


def craters(data: Path, options: dict[str, Any]) -> c2f.Model:
    """Fit to all eight scenes; craters that only one annotator marked are ignored."""
    paths = sorted((data / "mars").glob("*.png"))
    annotations = [_confident(json.loads(p.with_suffix(".geojson").read_text())) for p in paths]
    return c2f.fit(paths, annotations, **{"steps": 1500, "specialists": None, **options})


def _confident(collection: dict[str, Any]) -> dict[str, Any]:
    for feature in collection["features"]:
        if feature["properties"]["measurements"]["confidence"] < LEAST_CONFIDENCE:
            feature["properties"]["classification"]["name"] = "Ignore*"
    return collection


def generic(data: Path, options: dict[str, Any]) -> c2f.Model:
    """Fit to planets, blood, tissue, satellite scenes, photographs and paper."""
    paths = [*sorted((data / "mars").glob("*.png")), *sorted((data / "formats").iterdir())]
    paths += sorted((data / "rbc" / "images").iterdir())[:24]
    images: list[Any] = [c2f.open_image(p) for p in paths]
    import skimage.data  # noqa: PLC0415 (an extra)

    names = (
        "astronaut",
        "coffee",
        "chelsea",
        "rocket",
        "retina",
        "immunohistochemistry",
        "hubble_deep_field",
    )
    for name in (*names, "grass", "gravel", "brick", "page", "coins", "moon"):
        try:
            images.append(c2f.open_image(getattr(skimage.data, name)()))
        except (OSError, RuntimeError, ImportError) as error:
            print(f"left out {name}: not bundled with scikit-image here ({error})")
    paper = DigitScene(2048, 2048, digits=120, clutter=200, seed=104, handwriting="train")
    images.append(c2f.open_image(paper.block(Box(0, 0, 2048, 2048))))
    return fit_explorer(images, kinds=True, **options)


RECIPES = {"digits": digits, "craters": craters, "glyphs": glyphs, "generic": generic}

if __name__ == "__main__":
    main()
