"""The demo's second part: letters of many scripts, each found and then named by itself."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from coarse2fine.demo.gigapixel import DEMO_SEED, score
from coarse2fine.demo.glyph_scene import GlyphScene
from coarse2fine.engine import analyze
from coarse2fine.model import load_model
from coarse2fine.tiling.geometry import Box

_SIDE, _LETTERS, _CLUTTER = 4096, 600, 900


def run_letters(folder: Path) -> None:
    """Make the scene, analyse it, print the summary, and write the results.

    Parameters
    ----------
    folder : Path
        Folder of the scene and the results; made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scene = GlyphScene(_SIDE, _SIDE, letters=_LETTERS, clutter=_CLUTTER, seed=DEMO_SEED)
    path = folder / "letters.png"
    path.write_bytes(np.asarray(cv2.imencode(".png", scene.block(Box(0, 0, _SIDE, _SIDE)))[1]).tobytes())
    model = load_model("glyphs")
    classifier = model.classifier
    assert classifier is not None
    scripts = len({name.split()[0] for name in classifier.labels})
    print(
        f"letters    {len(scene.objects):,} letters, of {len(classifier.labels)} classes in {scripts} scripts, {path}"
    )
    with analyze(path, model) as analysis:
        print(f"found      {score(analysis, scene, 'letters')}")
        cost = analysis.cost
        print(f"compute    {cost.macs / 1e9:,.1f} GMAC, {cost.classify_macs / cost.macs:.0%} of it for names; ", end="")
        print(f"{cost.exhaustive_macs / 1e9:,.1f} for every cell: {cost.speedup:.1f}x less")
        analysis.save(folder)
    print(f"pictures   {(folder / 'overview.png').resolve()}")
