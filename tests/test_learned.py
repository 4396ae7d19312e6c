"""What a model was fitted on, in words."""

from __future__ import annotations

from typing import Any

import pytest

from coarse2fine.learned import learned_from


@pytest.mark.parametrize(
    ("provenance", "lines"),
    [
        (
            {"scenes": ["a", "b"], "objects": 1500, "median_size": 30.2, "f1_held_back": 0.942, "recall_target": 0.99},
            [
                "fitted on 2 scenes (a, b): 1,500 annotated objects, half of them above 30 px",
                "F1 0.94 on parts that were held out, set to find 99.0% of what refining everything finds",
            ],
        ),
        ({"scenes": ["array"], "objects": 7}, ["fitted on 1 scene: 7 annotated objects"]),
        ({"scenes": ["x.png", "array", "y", "z", "w"]}, ["fitted on 5 scenes (x.png, y, z, ...)"]),
        ({"images": 50}, ["fitted on 50 images"]),
        ({"scenes": ["a"], "objects": 0, "median_size": 32}, ["fitted on 1 scene (a)"]),
        (
            {"recall_target": 0.97, "cost_share": 0.0123, "finds": [18, 1088]},
            [
                "set to find 97.0% of what refining everything finds for 1.2% of its cost on these scenes, "
                "by 1,088 finds, 18 of them held out"
            ],
        ),
        ({"finds": [18], "cost_share": "little"}, []),
        ({"finds": ["a", 3]}, []),
        ({"recall_target": 0.95}, ["set to find 95.0% of what refining everything finds"]),
        ({}, []),
        # From a stranger's file.
        ({"scenes": "all of them", "objects": "many", "f1_held_back": None, "images": True}, []),
        ({"scenes": [3, None], "median_size": []}, ["fitted on 2 scenes (3, None)"]),
        ({"f1_held_back": 10**400, "images": 10**400, "recall_target": float("nan")}, []),
        ({"images": float("inf"), "f1_held_back": -1, "objects": 1e300}, []),
        ({"scenes": ["x" * 10**5]}, [f"fitted on 1 scene ({'x' * 60})"]),
    ],
)
def test_it_says_what_is_known(provenance: dict[str, Any], lines: list[str]) -> None:
    assert learned_from(provenance) == lines


def test_names_are_shown_as_text() -> None:
    (line,) = learned_from({"scenes": ["a\x1b[31m\n"]})
    assert line.isprintable()
