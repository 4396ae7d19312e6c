"""Whether an image's pixels look like those of the images that a model was fitted on."""

from __future__ import annotations

import numpy as np

from coarse2fine.model import Model
from coarse2fine.preprocess import sampled_pixels
from coarse2fine.remembered import KEY
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.image import Image

# Side of the blocks in pixels of the plane that is scanned, and the difference of means, in standard deviations of the
# fit's pixels, from which it is told.
_SIDE, _FAR = 128, 2.5


def unlike(model: Model, image: Image) -> list[str]:
    """A note if the mean of any channel is far from that in the fit's images, by a sample of small blocks.

    Parameters
    ----------
    model : Model
        One that does not learn from the image itself; the embedded and older ones say nothing.
    image : Image
    """
    if model.refiner.learns or KEY not in model.provenance:
        return []
    try:
        blocks = sampled_pixels(image, model.channels, model.geometry.scan_downsample, _SIDE)
    except ImageError:
        return []  # other notes tell of what cannot be read
    mean = np.concatenate(blocks).mean(axis=0)
    usual, spread = (255 * np.array(each) for each in (model.mean, model.std))
    if float((np.abs(mean - usual) / spread).max()) <= _FAR:
        return []
    what = "colours" if model.channels == 3 else "brightness"
    theirs = ", ".join(f"{a:.0f} +- {b:.0f}" for a, b in zip(usual, spread, strict=True))
    return [
        f"the image's {what} (mean {', '.join(f'{value:.0f}' for value in mean)}) differs from that of the fit "
        f"({theirs}): many finds may be false; add such an image to the fit"
    ]
