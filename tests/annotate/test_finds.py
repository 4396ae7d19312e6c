"""Which finds wait for a decision."""

from __future__ import annotations

from typing import Any

import pytest

from coarse2fine.annotate.finds import undecided
from coarse2fine.region import Region
from tests.annotate.local import boxed

REJECTED = {"coarse2fine": {"rejected": True}}


@pytest.mark.parametrize(
    ("item", "asked"),
    [
        (boxed(0, 0, 35, 100, "Region*"), False),
        (boxed(0, 0, 25, 100, "Region*"), True),
        (boxed(0, 0, 35, 100, "Ignore*"), False),
        (boxed(0, 0, 32, 200, "cell"), False),
        (boxed(0, 0, 32, 200, "dust"), False),
        (boxed(0, 0, 28, 200, "dust"), True),
        (boxed(0, 0, 200, 200, "dust", **REJECTED), True),
    ],
)
def test_places_and_objects_that_decide_on_a_find(item: dict[str, Any], asked: bool) -> None:
    find = Region("cell", 0.6, (50, 20, 70, 40))
    assert undecided([find], [item]) == ([find] if asked else [])
    assert undecided([], [item]) == []
