"""The demo: make a gigapixel scene on disk, analyse it, and compare finds with its digits and cost with exhaustive."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from coarse2fine.demo.digit_scene import DigitScene, Handwriting
from coarse2fine.demo.ink_scene import InkScene
from coarse2fine.engine import analyze
from coarse2fine.fitting.matching import match
from coarse2fine.model import Model, load_model
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Progress
from coarse2fine.results.analysis import Analysis
from coarse2fine.results.json_file import write_json
from coarse2fine.steps.plan import Plan, dense_plan
from coarse2fine.steps.refine import Refinement, refine
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.writing.pyramid import write_pyramid

DEMO_SEED = 2013
"""Seed of the scene; neither it nor its handwriting was seen in training."""
_SAMPLED_BLOCKS = 32
_PIXELS_PER_DIGIT, _PIXELS_PER_CLUTTER = 3.2e6, 0.7e6


@dataclass(frozen=True)
class Score:
    """Comparison of finds with the characters of the scene.

    Parameters
    ----------
    true, found, right, named : int
        Characters in the scene, finds, finds that are one of them, and those of these that name it correctly.
    things : str
        What the characters are.
    """

    true: int
    found: int
    right: int
    named: int
    things: str

    def __str__(self) -> str:
        return (
            f"{self.right:,} of {self.true:,} {self.things} ({self.right / self.true:.1%}), "
            f"{self.named / max(self.right, 1):.1%} of these in the right class; "
            f"{self.found - self.right:,} false alarms"
        )


def run(folder: Path, side: int) -> None:
    """Make the scene if it is not there, analyse it, print the summary and write the results.

    Parameters
    ----------
    folder : Path
        Folder of the scene and the results.
    side : int
        Side of the square scene in pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scene = demo_scene(side)
    path = _write_scene(scene, folder / f"digits-{side}.zarr")
    print(f"scene      {side:,} x {side:,} px = {side**2 / 1e9:.2f} gigapixel, {path}")
    model = load_model("digits")
    with analyze(path, model, progress=True) as analysis:
        print(f"objects    {len(scene.objects):,} digits and {len(scene.clutter):,} look-alikes")
        print(f"found      {score(analysis, scene)}")
        cost = analysis.cost
        share = cost.cells_refined / cost.cells
        print(f"refined    {cost.cells_refined:,} of {cost.cells:,} cells of {analysis.cell} px: {share:.3%}")
        with open_image(path) as image:
            seconds = refine_sample(image, model, _SAMPLED_BLOCKS, 0).seconds
        print(
            f"compute    {cost.macs / 1e9:,.0f} GMAC ({cost.scan_macs / cost.macs:.0%} of it the scan) against "
            f"{cost.exhaustive_macs / 1e9:,.0f} for every cell: {cost.speedup:.1f}x less"
        )
        print(
            f"time       {cost.seconds:.1f} s (scan {cost.scan_seconds:.1f}, choose {cost.choose_seconds:.1f}, refine "
            f"{cost.refine_seconds:.1f}) against an estimated {seconds:.0f} s: {seconds / cost.seconds:.1f}x less"
        )
        print(f"           (estimate: {_SAMPLED_BLOCKS} random blocks of this scene, scaled to all of it)")
        print(f"read       {cost.bytes / 1e6:,.0f} MB decoded of {side**2 * 4 / 3 / 1e6:,.0f} in the pyramid")
        analysis.save(folder)
    print(f"picture    {(folder / 'overview.png').resolve()}")
    print(f"finds      {(folder / 'regions.geojson').resolve()} (opens in QuPath)")


def demo_scene(
    side: int, *, seed: int = DEMO_SEED, handwriting: Handwriting = "held-out", crowd: float = 1.0
) -> DigitScene:
    """Scene of digits and more marks that look like digits at low resolution; hundreds in a gigapixel.

    Parameters
    ----------
    side : int
        In pixels.
    seed, handwriting
        See `DigitScene`; by default those of the demo.
    crowd : float
        Number of marks as a multiple of the demo's.
    """
    area = side * side * crowd
    digits, clutter = max(3, int(area / _PIXELS_PER_DIGIT)), max(6, int(area / _PIXELS_PER_CLUTTER))
    return DigitScene(side, side, digits=digits, clutter=clutter, seed=seed, handwriting=handwriting)


def score(analysis: Analysis, scene: InkScene, things: str = "digits") -> Score:
    """Match finds with characters one to one by position, then compare names."""
    corners = np.array(
        [(o.full_box.y0, o.full_box.x0, o.full_box.y1, o.full_box.x1) for o in scene.objects], np.float64
    )
    reach = (corners[:, 2:] - corners[:, :2]).max(axis=1) / 2
    found = np.array([r.full_centre for r in analysis.regions]).reshape(-1, 2)
    scores = np.array([r.score for r in analysis.regions], np.float32)
    owner = match(found, scores, (corners[:, :2] + corners[:, 2:]) / 2, reach)
    named = sum(
        i >= 0 and region.label == scene.objects[i].label
        for i, region in zip(owner.tolist(), analysis.regions, strict=True)
    )
    return Score(len(scene.objects), len(found), int((owner >= 0).sum()), named, things)


def _write_scene(scene: DigitScene, path: Path) -> Path:
    if path.exists():
        return path
    with Progress(True) as bars:
        tick = bars.task("making the scene")
        write_pyramid(path, (scene.height, scene.width, 1), scene.block, progress=tick)
    write_json(path.with_suffix(".geojson"), scene.annotations())
    return path


@dataclass(frozen=True)
class SampledPass:
    """Random blocks of the exhaustive pass.

    Parameters
    ----------
    plan : Plan
        The blocks.
    fine : Refinement
    seconds, bytes : float
        Time, reading included, and decoded bytes, both scaled to all blocks.
    """

    plan: Plan
    fine: Refinement
    seconds: float
    bytes: float


def refine_sample(image: Image, model: Model, count: int, seed: int) -> SampledPass:
    """Refine random blocks of the exhaustive pass.

    Parameters
    ----------
    image : Image
    model : Model
    count : int
        Number of blocks, or as many as there are.
    seed : int
    """
    whole = dense_plan(model.cell_shape((image.height, image.width)))
    order = np.random.default_rng(seed).permutation(len(whole))
    again = partial(refine, image, model=model, runtime=Runtime.choose(), floor=model.threshold)
    # Warm-up: preparing the net for the block's shape must not be scaled up with the sample.
    again(whole.take(order[-1:]))
    plan = whole.take(np.sort(order[:count]))
    before, start = image.stats.snapshot(), time.perf_counter()
    fine = again(plan)
    seconds, scale = time.perf_counter() - start, len(whole) / len(plan)
    return SampledPass(plan, fine, seconds * scale, image.stats.since(before).bytes * scale)
