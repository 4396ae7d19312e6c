"""Benchmark of the whole pipeline with very many classes: a large sheet is searched, and each find named by itself."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coarse2fine.bench.sections import Section, SectionReport
from coarse2fine.demo.gigapixel import score
from coarse2fine.demo.glyph_scene import GlyphScene
from coarse2fine.engine import analyze
from coarse2fine.model import Model, load_model
from coarse2fine.models.runtime import Runtime
from coarse2fine.terminal import say
from coarse2fine.tiling.writing.pyramid import write_pyramid

_EXPLAINED = (
    "Sheets with letters of thirteen scripts (the font that matplotlib brings) and marks that look like letters from "
    "afar, on textured ground, other ones than `glyphs` was fitted to. found: share of the letters; right: share of "
    "these with the right name, of as many classes as the model has; false: finds that are no letter.",
    "gmac: 10^9 multiply-adds of a sheet; names: share of them for names. saving_macs, saving_seconds: the exhaustive "
    "pass over the analysis by default. Means over seeds, with standard deviations.",
)
_FIRST = 7000  # seed of the first sheet
_SAVED = {"macs": "gmac", "seconds": "seconds"}


@dataclass(frozen=True)
class SheetScale:
    """Extent of the measurement: side of a sheet in pixels, letters and look-alikes on it, and number of sheets."""

    side: int
    letters: int
    clutter: int
    seeds: int


FULL, QUICK = SheetScale(16_384, 2_400, 3_600, 3), SheetScale(2048, 150, 220, 1)


def benchmark_sheets(out: Path, *, scale: SheetScale = FULL) -> SectionReport:
    """Analyse sheets by default and exhaustively; the sheets are kept in `out`, an existing folder."""
    model = load_model("glyphs")
    found = [_measured(model, _FIRST + seed, scale, out) for seed in range(scale.seeds)]
    figures: dict[str, float] = {}
    for name in ("default", "exhaustive"):
        rows = [each[name] for each in found]
        for key in rows[0]:
            values = [row[key] for row in rows]
            figures[f"{name}/{key}"] = float(np.mean(values))
            if scale.seeds > 1 and key in ("found", "right", "saving_macs"):
                figures[f"{name}/{key}_sd"] = float(np.std(values, ddof=1))
    assert model.classifier is not None
    title = f"sheets of {scale.side**2 / 1e9:.2f} gigapixels, {len(model.classifier.labels)} classes"
    notes = [f"number format: {Runtime.choose().name}"]
    return SectionReport("sheets", [Section(title, figures)], range(scale.seeds), asdict(scale), _EXPLAINED, notes)


def _measured(model: Model, seed: int, scale: SheetScale, out: Path) -> dict[str, dict[str, float]]:
    """Figures of one sheet."""
    side = scale.side
    scene = GlyphScene(side, side, letters=scale.letters, clutter=scale.clutter, seed=seed)
    path = out / f"letters-{side}-{scale.letters}-{seed}.zarr"
    if not path.exists():
        say(f"making {path.name}", file=sys.stderr)
        write_pyramid(path, (side, side, 1), scene.block)
    rows: dict[str, dict[str, float]] = {}
    options: dict[str, dict[str, Any]] = {"exhaustive": {"budget": 1.0}, "default": {}}
    for name, given in options.items():
        with analyze(path, model, **given) as analysis:
            cost, known = analysis.cost, score(analysis, scene, "letters")
        whole = rows.get("exhaustive")
        rows[name] = {
            "found": known.right / known.true,
            "right": known.named / max(known.right, 1),
            "false": known.found - known.right,
            "gmac": cost.macs / 1e9,
            "names": cost.classify_macs / cost.macs,
            "seconds": cost.seconds,
        }
        if whole is not None:
            rows[name] |= {f"saving_{key}": whole[unit] / rows[name][unit] for key, unit in _SAVED.items()}
    return rows
