"""Looking without labels: what is rare in this very image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import convolve
from scipy.stats import multivariate_normal

from coarse2fine import analyze
from coarse2fine.batch.estimate import estimate
from coarse2fine.batch.inputs import find_items
from coarse2fine.batch.request import BatchRequest
from coarse2fine.config import Config
from coarse2fine.model import Model
from coarse2fine.models.mixture import Mixture, ridge
from coarse2fine.models.runtime import Runtime
from coarse2fine.refiners.novelty import NoveltyModel, pooled, surprise_by
from coarse2fine.steps.novelty import explore
from coarse2fine.tiling.opening import open_image
from coarse2fine.tiling.window_reader import WindowBatch, WindowReader

MakeImage = Callable[..., NDArray[np.uint8]]
PATCH = (slice(160, 208), slice(320, 368))


def odd_scene(side: int = 512) -> NDArray[np.uint8]:
    """Even noise, and in it one patch of another texture of like brightness."""
    pixels = np.random.default_rng(0).integers(90, 166, (side, side, 3))
    y, x = np.mgrid[:48, :48]
    pixels[PATCH] = (128 + 90 * np.where((x // 6 + y // 6) % 2, 1, -1))[..., None]
    return pixels.astype(np.uint8)


def test_an_odd_patch_is_found_and_little_else(explorer: Model) -> None:
    found = analyze(odd_scene(), explorer, budget=0.4, precision="fp32")
    inside = np.zeros(found.interest.shape, bool)
    inside[20:26, 40:46] = True
    assert np.median(found.interest[inside]) > np.quantile(found.interest[~inside], 0.97)
    assert found.refined[inside].mean() > 0.8
    areas = np.array([(r.full_box[2] - r.full_box[0]) * (r.full_box[3] - r.full_box[1]) for r in found.regions])
    centres = np.array([r.full_centre for r in found.regions])
    hit = np.all((centres > (150, 310)) & (centres < (218, 378)), axis=1)
    assert areas[hit].sum() > 0.6 * 48 * 48
    assert areas[hit].sum() > areas[~hit].sum()


def test_a_seed_decides(explorer: Model) -> None:
    first, again = (analyze(odd_scene(), explorer, seed=3, precision="fp32") for _ in range(2))
    assert first.regions == again.regions
    np.testing.assert_array_equal(first.interest, again.interest)
    other = analyze(odd_scene(), explorer, seed=4, precision="fp32")
    assert not np.array_equal(first.interest, other.interest)


@pytest.mark.parametrize("shape", [(1, 1), (7, 40), (40, 7), (65, 64), (300, 200)])
def test_any_size_of_image_can_be_explored_without_a_budget(
    make_image: MakeImage, explorer: Model, shape: tuple[int, int]
) -> None:
    for channels in (1, 3):
        found = analyze(make_image(*shape, channels), explorer, precision="fp32")
        assert found.complete
        assert found.interest.shape == explorer.cell_shape(shape)
        assert found.cost.cells_refined < found.cost.cells or found.cost.cells < 100


def test_a_budget_for_all_refines_all(make_image: MakeImage, explorer: Model) -> None:
    found = analyze(make_image(64, 96), explorer, budget=1.0, precision="fp32")
    assert found.refined.all()
    assert found.cost.scan_macs > 0  # what is usual must be learned from a scan all the same
    with pytest.raises(ValueError, match="does not pay for the scan"):
        analyze(make_image(64, 96), explorer, budget=0.01, precision="fp32")


def test_a_tight_budget_leaves_half_for_the_closer_look(
    make_image: MakeImage, explorer: Model, runtime: Runtime
) -> None:
    pixels = make_image(480, 480)
    whole = analyze(pixels, explorer, budget=1.0, precision="fp32").cost.exhaustive_macs
    usual = explore(open_image(pixels), explorer, runtime, 0, most_macs=whole)[0].macs / whole
    found = analyze(pixels, explorer, budget=0.99 * usual, precision="fp32")  # too little for the usual sample
    assert found.cost.share <= 0.99 * usual
    assert found.cost.cells_refined > 0
    assert found.cost.scan_macs < usual * whole


def test_a_dry_run_knows_what_exploring_everything_takes(
    make_image: MakeImage, explorer: Model, tmp_path: Path
) -> None:
    explorer.save(tmp_path / "odd.c2f")
    cv2.imwrite(str(tmp_path / "a.png"), make_image(150, 210))
    spent = analyze(tmp_path / "a.png", explorer, budget=1.0, precision="fp32").cost
    for budget, most in ((None, 1.0), (1.0, 1.0), (0.6, 0.6)):
        budgeted = Config(budget=budget)
        expected = estimate(
            BatchRequest(find_items(tmp_path / "a.png"), tmp_path / "out", tmp_path / "odd.c2f", budgeted)
        )
        assert 0 < expected.images[0].least_macs < spent.scan_macs
        assert expected.images[0].most_macs == pytest.approx(most * spent.macs, abs=1)


@pytest.mark.parametrize("budget", [None, 1.0])
def test_a_blank_image_holds_nothing_rare(explorer: Model, budget: float | None) -> None:
    found = analyze(np.full((150, 150, 3), 128, np.uint8), explorer, budget=budget, precision="fp32")
    assert found.regions == ()


def test_the_account_of_exploring_holds_the_sample(make_image: MakeImage, explorer: Model, runtime: Runtime) -> None:
    scan, odd = explore(open_image(make_image(200, 200)), explorer, runtime, 0, most_macs=10**12)
    plain = explorer.base.spec.macs(25, 25)
    cells = len(odd.sample) // explorer.geometry.fine**2
    assert scan.macs == pytest.approx(plain + cells * explorer.window_macs(1, 1), rel=0.2)
    assert bool((odd.sample.diff() >= 0).all())
    assert 0 <= scan.interest.min() <= scan.interest.max() <= 1


# The arithmetic


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_cell_is_judged_with_the_others_of_its_block(seed: int, block: int, down: int, across: int) -> None:
    rng = np.random.default_rng(seed)
    alone = rng.normal(0, 3, (2, down * block, across * block)).astype(np.float32)
    found = pooled(torch.from_numpy(alone), block).numpy()
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    for image, y, x in np.ndindex(2, down, across):
        own = np.s_[image, y * block : (y + 1) * block, x * block : (x + 1) * block]
        expected = (convolve(alone[own].astype(np.float64), kernel, mode="nearest") + alone[own].mean()) / 2
        np.testing.assert_allclose(found[own], expected, atol=1e-3)


def test_the_rank_is_the_share_of_the_usual_and_orders_what_is_beyond() -> None:
    rng = np.random.default_rng(0)
    model = NoveltyModel.of(rng.normal(0, 1, (400, 1, 3)).astype(np.float32), None, (99, 99), seed=0)
    assert model.block == 1
    sample = model.sample.numpy()
    within = model.rank(model.sample).numpy()
    np.testing.assert_allclose(within[:360], np.searchsorted(sample, sample[:360]) / 401, atol=1e-6)
    assert (np.diff(within[361:]) >= 0).all()
    high = float(sample[360])
    assert float(model.rank(torch.tensor(high + 1e-3))) == pytest.approx(0.9, abs=0.01)
    beyond = model.rank(torch.tensor([0.1, 1.0, 10.0, 100.0, 1000.0]) + high).numpy()
    assert (np.diff(beyond) > 0).all()
    assert beyond[-1] <= 1
    # Of other cells of the same kind about as many are rare as the rank says.
    more = torch.from_numpy(rng.normal(0, 1, (20_000, 3)).astype(np.float32))
    ranks = model.rank(pooled(surprise_by(model.mixture, more)[0].view(-1, 1, 1), 1)).flatten().numpy()
    for share in (0.5, 0.8, 0.95, 0.98):
        assert (ranks > share).mean() == pytest.approx(1 - share, rel=0.35)


def test_what_is_sought_may_be_in_the_sample() -> None:
    rng = np.random.default_rng(1)
    measures = rng.normal(0, 1, (64, 4, 3)).astype(np.float32)
    measures[:3] += 9
    model = NoveltyModel.of(measures, None, (99, 99), seed=0)
    odd = torch.from_numpy((rng.normal(0, 1, (8, 3)) + 9).astype(np.float32))
    surprise, _ = surprise_by(model.mixture, odd)
    assert float(model.rank(surprise).min()) > 0.97


@pytest.mark.parametrize("shape", [(512, 520), (520, 512), (507, 531), (513, 512), (519, 515), (512, 518)])
def test_an_edge_between_cells_is_not_rare(shape: tuple[int, int]) -> None:
    """Beyond the image its edge is repeated: streaks, unlike the noise of the image."""
    noise = np.random.default_rng(0).integers(60, 196, (*shape, 3)).astype(np.uint8)
    found = analyze(noise, "generic", budget=1.0, precision="fp32")
    centres = np.array([region.full_centre for region in found.regions]).reshape(-1, 2)
    at_edge = (centres > np.array(shape) - 24).any(axis=1).sum()
    assert at_edge <= 2


@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (5, 40), (515, 516)])
def test_a_blank_image_of_any_size_holds_nothing(shape: tuple[int, int]) -> None:
    assert analyze(np.zeros((*shape, 3), np.uint8), "generic", budget=1.0, precision="fp32").regions == ()


def test_what_cannot_be_read_is_not_rare(explorer: Model, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(90, 166, (2600, 128, 3)).astype(np.uint8)
    read = WindowReader.batches

    def broken(self: WindowReader, windows: Any, size: int) -> Iterator[WindowBatch]:
        """Blocks of the scan, one a batch, of which the last fails."""
        last = len(windows) - 1
        for batch in read(self, windows, size):
            yield replace(batch, failed=batch.failed | ((size == 1) & (batch.index == last)))

    monkeypatch.setattr(WindowReader, "batches", broken)
    scan, _ = explore(open_image(pixels), explorer, runtime, 0, most_macs=10**12)
    assert scan.interest[-8:].max() < 1e-6 < np.median(scan.interest[:100])


def test_one_kind_is_a_gaussian() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(0, 1, (5000, 4)) @ rng.normal(0, 1, (4, 4)) + 3).astype(np.float32)
    surprise, kind = Mixture.fit(x, 1, seed=0).surprise(torch.from_numpy(x))
    exact = multivariate_normal(x.mean(axis=0, dtype=np.float64), np.cov(x, rowvar=False)).logpdf(x)
    np.testing.assert_allclose(surprise.numpy(), -exact - 2 * np.log(2 * np.pi), rtol=2e-3, atol=2e-3)
    assert int(kind.max()) == 0


def test_kinds_are_told_apart_and_what_fits_none_is_rare() -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(m, 0.3, (500, 3)) for m in (-4, 0, 4)]).astype(np.float32)
    mixture = Mixture.fit(x, 3, seed=0)
    surprise, kind = mixture.surprise(torch.from_numpy(x))
    groups = [set(k.tolist()) for k in kind.reshape(3, 500)]
    assert all(len(g) == 1 for g in groups)
    assert len(set.union(*groups)) == 3
    odd, _ = mixture.surprise(torch.tensor([[6.0, -6.0, 0.0], [-4.0, 4.0, 0.0]]))
    assert float(odd.min()) > float(surprise.quantile(0.99))


@pytest.mark.parametrize("rows", [1, 2, 5, 60])
def test_few_or_equal_rows_make_a_mixture_all_the_same(rows: int) -> None:
    for x in (np.ones((rows, 6), np.float32), np.random.default_rng(0).random((rows, 6), np.float32)):
        surprise, kind = Mixture.fit(x, 8, seed=0).surprise(torch.from_numpy(x))
        assert bool(torch.isfinite(surprise).all())
        assert 0 <= int(kind.min()) <= int(kind.max()) < 8


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_ridge_tends_to_least_squares(seed: int, inputs: int, outputs: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(2, 3, (200, inputs)) * rng.uniform(0.1, 10, inputs)).astype(np.float32)
    y = (x @ rng.normal(0, 1, (inputs, outputs)) + rng.normal(1, 1, (200, outputs))).astype(np.float32)
    found = ridge(x, y, strength=1e-8)
    exact = np.linalg.lstsq(np.column_stack([x, np.ones(200)]).astype(np.float64), y, rcond=None)[0]
    np.testing.assert_allclose(found, exact, rtol=5e-3, atol=5e-3)
    flat = ridge(x, y, strength=1e12)
    np.testing.assert_allclose(flat[:-1], 0, atol=1e-3)
    np.testing.assert_allclose(flat[-1], y.mean(axis=0), rtol=1e-2, atol=1e-2)
