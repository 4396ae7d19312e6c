"""Classes of finds by the model's classifier, which reads each find at a resolution that suits its size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.model import Model
from coarse2fine.preprocess import as_channels
from coarse2fine.progress import Tick
from coarse2fine.region import Region
from coarse2fine.specialists.classifier import Classifier
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.window_reader import MOST_WORKERS

# Pixels that are read before they are classified, and the side of the squares in whose order finds are read.
_PIXELS, _NEAR = 2**22, 1024


class Crop(NamedTuple):
    """A square of an image to read, around a find: its box at 1/`downsample`."""

    downsample: int
    box: Box

    @property
    def place(self) -> tuple[int, ...]:
        """Order in which crops are read, so that those of one stored chunk follow each other."""
        corner = self.box.y0 * self.downsample, self.box.x0 * self.downsample
        return *(at // _NEAR for at in corner), self.downsample, *corner

    @classmethod
    def around(cls, centre: tuple[float, float], full_side: float, side: int) -> Crop:
        """The square around a find, at the coarsest whole reduction that has enough pixels.

        Parameters
        ----------
        centre : tuple of float
            Its middle (y, x) in full-resolution pixels.
        full_side : float
            Its side in full-resolution pixels.
        side : int
            Pixels of a side that are needed.
        """
        downsample = max(1, int(full_side / side))
        pixels = max(1, round(full_side / downsample))
        y, x = (round(c / downsample - pixels / 2) for c in centre)
        return cls(downsample, Box(y, x, y + pixels, x + pixels))

    def read(self, image: Image, side: int, channels: int) -> NDArray[np.uint8]:
        """Its pixels, uint8, (side, side, channels)."""
        pixels = as_channels(image.read_scaled(self.box, self.downsample), channels)
        way = cv2.INTER_AREA if self.box.width > side else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(pixels, (side, side), interpolation=way), np.uint8).reshape(side, side, channels)


class Named(NamedTuple):
    """Finds with the classifier's classes.

    Parameters
    ----------
    regions : tuple of Region
    macs : int
        Multiply-adds.
    failures : tuple of str
        Why finds could not be read, each reason once; they keep their class.
    interrupted : bool
        Whether Ctrl-C ended it early; the remaining finds keep their class.
    """

    regions: tuple[Region, ...]
    macs: int
    failures: tuple[str, ...] = ()
    interrupted: bool = False


def classify(regions: Sequence[Region], model: Model, image: Image, tick: Tick | None = None) -> Named:
    """Name finds by the model's classifier; areas, and finds that cannot be read, keep their class.

    Parameters
    ----------
    regions : sequence of Region
        The finds of one band.
    model : Model
        Of that band.
    image : Image
    tick : callable, optional
        Called with finds done and finds in all.
    """
    classifier, areas = model.classifier, {label.name for label in model.labels if label.kind == "area"}
    if classifier is None:
        return Named(tuple(regions), 0)
    found, macs, failures = list(regions), 0, dict[str, None]()
    crops = {i: crop_of(classifier, region) for i, region in enumerate(regions) if region.label not in areas}
    order = sorted(crops, key=lambda i: crops[i].place)
    at_once = max(1, _PIXELS // (classifier.side**2 * classifier.channels))
    with ThreadPoolExecutor(min(MOST_WORKERS, os.cpu_count() or 1), thread_name_prefix="find-reader") as pool:
        try:
            for start in range(0, len(order), at_once):
                part = order[start : start + at_once]
                read = list(pool.map(lambda i: _read(crops[i], image, classifier), part))
                failures |= {f"a find keeps its class: {each}": None for each in read if isinstance(each, str)}
                rows = [i for i, each in zip(part, read, strict=True) if not isinstance(each, str)]
                if rows:
                    classes = classifier(np.stack([each for each in read if not isinstance(each, str)]))
                    macs += classes.macs
                    for i, label, node in zip(rows, classes.labels.tolist(), classes.nodes.tolist(), strict=True):
                        found[i] = replace(found[i], label=classifier.labels[label], route=classifier.route(node))
                if tick:
                    tick(start + len(part), len(order))
        except KeyboardInterrupt:
            return Named(tuple(found), macs, tuple(failures), interrupted=True)
    return Named(tuple(found), macs, tuple(failures))


def _read(crop: Crop, image: Image, classifier: Classifier) -> NDArray[np.uint8] | str:
    """Pixels of a crop, or why they cannot be read."""
    try:
        return crop.read(image, classifier.side, classifier.channels)
    except ImageError as error:
        return str(error)


def crop_of(classifier: Classifier, region: Region) -> Crop:
    """The crop from which a find is named."""
    y0, x0, y1, x1 = region.full_box
    return Crop.around(region.full_centre, classifier.context * max(y1 - y0, x1 - x0), classifier.side)
