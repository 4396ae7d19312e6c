"""Planes of a model in images whose pixels are some times smaller or larger than those of its fit."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from coarse2fine.cascade import MOST_PIXELS, CascadeStage, Geometry
from coarse2fine.model import Model
from coarse2fine.remembered import FACTOR, KEY, MPP_FACTOR, Remembered, pixel_size
from coarse2fine.tiling.image import Image


def at_pixel_size(model: Model, image: Image) -> Model:
    """The model with planes that show an image at the pixel size of its fit, as nearly as a whole factor allows.

    A model that was fitted at 0.5 microns a pixel reads an image of 0.25 at half of its resolution. If no whole factor
    is near, the image's pixels are too large for the planes, or a size is unknown, it is the model as it is.

    Parameters
    ----------
    model : Model
    image : Image
    """
    known, size = Remembered.by(model), pixel_size(image)
    if known is None or known.mpp is None or size is None or FACTOR in model.provenance:
        return model
    ratio = known.mpp / size
    if not 1 / MOST_PIXELS <= ratio <= MOST_PIXELS:  # beyond all planes
        return model
    factor = Fraction(round(ratio)) if ratio > 1 else Fraction(1, round(1 / ratio))
    if factor == 1 or not 1 / MPP_FACTOR <= ratio / factor <= MPP_FACTOR:
        return model
    bands = [band for each in model.bands if (band := _scaled(each, factor)) is not None]
    if len(bands) < len(model.bands):
        return model
    first, *others = bands
    record = {**known.to_json(), "mpp": known.mpp / float(factor)}
    provenance = {**model.provenance, KEY: record, FACTOR: float(factor)}
    return replace(first, others=tuple(others), provenance=provenance)


def _scaled(model: Model, factor: Fraction) -> Model | None:
    """A model of one band with all planes coarser by a factor; None if a plane would not be whole."""
    g = model.geometry
    sides = [n for level in model.levels for n in (level.cell, level.downsample)] + [g.refine_downsample, g.fine_cell]
    if any((n * factor).denominator != 1 or n * factor > MOST_PIXELS for n in sides):
        return None
    refiner = model.refiner.coarser(factor)
    if refiner is None:
        return None
    return replace(
        model,
        geometry=Geometry(
            int(g.cell * factor), int(g.scan_downsample * factor), int(g.refine_downsample * factor), g.fine
        ),
        refiner=refiner,
        cascade=tuple(_stage(level, factor) for level in model.cascade),
    )


def _stage(level: CascadeStage, factor: Fraction) -> CascadeStage:
    return replace(level, cell=int(level.cell * factor), downsample=int(level.downsample * factor))
