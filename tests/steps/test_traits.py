"""What sets unnamed kinds apart, on pictures whose difference is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from coarse2fine.region import Region
from coarse2fine.steps.traits import describe_kinds
from coarse2fine.tiling.opening import open_image

PLACE = (slice(200, 264), slice(300, 364))


def ground(seed: int = 0) -> NDArray[np.float64]:
    """Grey noise, soft and fine, (h, w, 3)."""
    rng = np.random.default_rng(seed)
    soft = np.kron(rng.normal(0, 8, (64, 64)), np.ones((8, 8)))
    return np.repeat((128 + soft + rng.normal(0, 6, (512, 512)))[..., None], 3, axis=2)


def described(pixels: NDArray[np.float64]) -> str:
    image = open_image(pixels.clip(0, 255).astype(np.uint8))
    found = describe_kinds([Region("kind 1", 0.9, (200.0, 300.0, 264.0, 364.0))], image, 1)
    assert found["kind 1"]["example"] == [200, 300, 264, 364]
    return str(found["kind 1"]["traits"])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda p: p - 70, "darker"),
        (lambda p: p + 70, "brighter"),
        (lambda p: 128 + 0 * p, "smoother"),
        (lambda p: 128 + 5 * (p - 128), "higher in contrast"),
        (lambda p: p + np.array([50, -10, -10]), "redder"),
        (lambda p: p + np.array([-30, 40, -30]), "greener"),
        (lambda p: p + np.array([-10, -10, 70]), "bluer"),
        (lambda p: p + np.array([25, 25, -60]), "yellower"),
    ],
)
def test_the_word_for_a_difference_is_told(change: object, word: str) -> None:
    pixels = ground()
    pixels[PLACE] = change(pixels[PLACE])  # type: ignore[operator]
    assert word in described(pixels).split(", ")


def test_detail_is_told_apart_from_contrast() -> None:
    rng, fine, coarse = np.random.default_rng(1), ground(), ground()
    fine[PLACE] = 128 + rng.normal(0, 10, (64, 64, 1))
    coarse[PLACE] = 128 + np.kron(rng.normal(0, 10, (4, 4)), np.ones((16, 16)))[..., None]
    assert "finer" in described(fine)
    assert "coarser" in described(coarse)


def test_what_is_like_the_rest_is_not_described() -> None:
    assert described(ground()) == ""
    assert describe_kinds([], open_image(np.zeros((64, 64), np.uint8)), 1) == {}


def test_kinds_of_the_same_words_are_told_apart() -> None:
    pixels, rng = ground(), np.random.default_rng(2)
    tints = [[0, 0, 0]] * 3 + [[2, -1, -1], [12, -4, -4]]
    boxes = {f"kind {i}": (100.0, 20.0 + 90 * i, 164.0, 84.0 + 90 * i) for i in range(len(tints))}
    for i, (tint, (y0, x0, y1, x1)) in enumerate(zip(tints, boxes.values(), strict=True)):
        pixels[int(y0) : int(y1), int(x0) : int(x1)] = 40 + 8 * i + rng.normal(0, 0.2, (64, 64, 1)) + np.array(tint)
    image = open_image(pixels.clip(0, 255).astype(np.uint8))
    found = describe_kinds([Region(kind, 0.9, each) for kind, each in boxes.items()], image, 1)
    words = [set(each["traits"].split(", ")) for each in found.values()]
    assert all("darker" in each and "smoother" in each for each in words[:4])
    assert len({frozenset(each) for each in words}) == len(words)
    ranks = [next(word for word in each if word.endswith("by lightness")) for each in words[:3]]
    assert ranks == [f"no. {place} of 3 by lightness" for place in (3, 2, 1)]
    assert "slightly redder" in words[3]
    assert "redder" in words[4]


def test_what_all_kinds_share_comes_last() -> None:
    pixels = ground()
    pixels[100:164, 100:164] += np.array([60, -20, -20.0]) - 60
    pixels[PLACE] += np.array([-20, -20, 60.0]) - 60
    pixels[400:464, 100:164] -= 60
    boxes = {"kind 1": (100, 100), "kind 2": (200, 300), "kind 3": (400, 100)}
    regions = [Region(k, 0.9, (float(y), float(x), y + 64.0, x + 64.0)) for k, (y, x) in boxes.items()]
    found = describe_kinds(regions, open_image(pixels.clip(0, 255).astype(np.uint8)), 1)
    assert found["kind 1"]["traits"].endswith("redder, darker")
    assert found["kind 2"]["traits"].startswith("bluer")
    assert "darker" in found["kind 3"]["traits"]
