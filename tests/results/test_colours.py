"""Colours of classes that are shown together are told apart by people with red-green colour blindness, too."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

from coarse2fine.results.colours import WINDOWS, label_colour, label_colours

# Vienot, Brettel and Mollon 1999, in linear RGB: another model than that of the code.
DEUTERANOPE = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
PROTANOPE = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
SETS = (
    ["crater"],
    ["tumour", "stroma"],
    ["defect", "pad", "trace", "via"],
    ["basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil"],
    [f"kind {i}" for i in range(1, 7)],
    [str(i) for i in range(7)],
)


def least_difference(colours: list[tuple[int, int, int]], vision: NDArray[np.float64]) -> float:
    """Least CIEDE2000 of two of some colours as they are seen."""
    values = np.array(colours) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ vision.T, 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))
    apart = deltaE_ciede2000(lab[:, None], lab[None])
    return float(apart[~np.eye(len(lab), dtype=bool)].min())


@pytest.mark.parametrize("labels", SETS, ids=str)
@pytest.mark.parametrize("vision", [np.eye(3), DEUTERANOPE, PROTANOPE], ids=["all cones", "deuteranope", "protanope"])
def test_colours_shown_together_are_told_apart(labels: list[str], vision: NDArray[np.float64]) -> None:
    chosen = label_colours(labels)
    assert set(chosen) == set(labels)
    # 1 is just noticeable side by side; tab10 comes down to 3.
    assert least_difference([*chosen.values(), WINDOWS], vision) > 8


def test_the_order_does_not_matter_and_a_label_alone_keeps_its_colour() -> None:
    assert label_colours(["a", "b", "c"]) == label_colours(["c", "b", "a", "b"])
    assert label_colours(["crater"]) == {"crater": label_colour("crater")}
    assert len(label_colours(map(str, range(100)))) == 100
    assert label_colours([]) == {}
