"""Several experts over the same images, each with its own output: what they need to have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping

from coarse2fine.experts.errors import ExpertError
from coarse2fine.experts.expert import Expert

# Side of the smallest tile in cells of the grid that all have in common, at most: maps of results have these cells.
_MOST_CELLS = 16


def check_outputs(experts: Mapping[str, Expert]) -> None:
    """Raise an ExpertError if experts cannot be joined in one model.

    Parameters
    ----------
    experts : mapping of str to Expert
        By the name of their outputs.
    """
    owner: dict[str, str] = {}
    for name, each in experts.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ExpertError(f"an output needs a name of letters, digits and _, such as nuclei; got {name!r:.60}")
        for label in each.labels:
            if label.name in owner:
                raise ExpertError(
                    f"the outputs {owner[label.name]} and {name} both have the label {label.name!r}, so their finds "
                    "could not be told apart: name them by labels="
                )
            owner[label.name] = name
    sides = [each.tile * each.downsample for each in experts.values()]
    if sides and min(sides) > _MOST_CELLS * math.gcd(*sides):
        raise ExpertError(
            f"tiles of {' and '.join(map(str, sides))} px have no common grid: choose sides whose greatest common "
            f"divisor is at least 1/{_MOST_CELLS} of the smallest, such as 512 and 640"
        )
