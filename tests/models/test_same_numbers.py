"""The same numbers, to the last bit, whatever the number of threads and of windows in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from coarse2fine import analyze
from coarse2fine.model import load_model
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.runtime import Runtime
from coarse2fine.models.threads import threads_here
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.refine import refine
from coarse2fine.tiling.opening import open_image

MakeImage = Callable[..., NDArray[np.uint8]]
SETTINGS = ((1, 1), (2, 3), (4, 1))  # threads, and windows in a batch


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    with threads_here(torch.get_num_threads()):
        yield


@pytest.mark.parametrize("name", ["craters", "digits", "generic"])
@pytest.mark.parametrize("side", [1, 3])
def test_a_window_has_the_same_answer_in_any_batch(
    make_image: MakeImage, runtime: Runtime, name: str, side: int
) -> None:
    model = load_model(name)
    cell = model.geometry.cell
    image = open_image(make_image(2 * cell, 4 * cell, model.channels, seed=side))
    corners = np.argwhere(np.ones((2, 4), bool))
    plan = Plan(corners, np.full((8, 2), side), np.ones(8, np.float32), (2, 4))

    def answers(threads: int, batch_size: int | None) -> dict[tuple[int, ...], NDArray[np.float32]]:
        seen: dict[tuple[int, ...], NDArray[np.float32]] = {}

        def read(out: torch.Tensor, fine_corners: NDArray[np.int64], *_: object) -> Candidates:
            seen.update(zip(map(tuple, fine_corners.tolist()), out.float().numpy().copy(), strict=True))
            return Candidates.empty()

        with threads_here(threads), pytest.MonkeyPatch.context() as patch:
            patch.setattr("coarse2fine.refiners.detection.read_detections", read)
            patch.setattr("coarse2fine.refiners.novelty.read_novelties", read)
            refine(image, plan, model, runtime, floor=0.0, batch_size=batch_size)
        return seen

    first = answers(1, None)
    assert len(first) == 8
    for threads, batch_size in SETTINGS:
        for corner, answer in answers(threads, batch_size).items():
            np.testing.assert_array_equal(answer, first[corner])


@pytest.mark.parametrize(("name", "seed"), [("generic", 0), ("generic", 1), ("digits", 2), ("glyphs", 3)])
def test_regions_are_the_same(make_image: MakeImage, name: str, seed: int) -> None:
    model = load_model(name)
    pixels = make_image(200, 180 + 20 * seed, seed=seed)
    found = []
    for threads, batch_size in ((1, None), *SETTINGS):
        with threads_here(threads):
            found.append(analyze(pixels, model, threshold=0.3, precision="fp32", batch_size=batch_size))
    assert len(found[0].regions) > 0 or name in ("digits", "glyphs")
    for other in found[1:]:
        np.testing.assert_array_equal(other.interest, found[0].interest)
        assert other.regions == found[0].regions
