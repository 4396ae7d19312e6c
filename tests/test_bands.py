"""Models of several bands of object sizes: one analysis with shared limits, one list of finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine import analyze, analyze_folder, load_model
from coarse2fine.analysis_run import AnalysisRun
from coarse2fine.audit.result import Audit
from coarse2fine.bundle import packed
from coarse2fine.config import Config
from coarse2fine.model import Geometry, Model
from coarse2fine.model_file import read_model_file
from coarse2fine.models.errors import ModelError
from coarse2fine.region import Region
from coarse2fine.results.analysis import Analysis
from coarse2fine.steps.bands import divide, map_on_grid
from coarse2fine.steps.checkpoint import StoredCheckpoint
from coarse2fine.steps.conclude import once
from coarse2fine.tiling.opening import open_image
from tests.conftest import MakeImage


@pytest.fixture(scope="module")
def banded(detector: Model) -> Model:
    """The tiny detector at full resolution, and again at a quarter of it."""
    coarse = replace(
        detector,
        geometry=Geometry(cell=32, scan_downsample=8, refine_downsample=4),
        refiner=replace(detector.refiner, downsample=4),  # type: ignore[type-var]
        provenance={"band": [90, 400]},
    )
    return replace(detector, others=(coarse,), provenance={"band": [8, 60]})


@pytest.fixture(scope="module")
def pixels(make_image: MakeImage) -> NDArray[np.uint8]:
    return make_image(700, 900, seed=3)


def run(pixels: NDArray[np.uint8], model: Model, **options: Any) -> Analysis:
    options.setdefault("audit", 0.0 if "recall" not in options else None)
    return analyze(pixels, model, device="cpu", precision="fp32", **options)


def keys(regions: tuple[Region, ...]) -> set[tuple[Any, ...]]:
    return {(r.label, r.score, r.full_box) for r in regions}


@pytest.fixture(scope="module")
def exhaustive(pixels: NDArray[np.uint8], banded: Model) -> Analysis:
    return run(pixels, banded, budget=1.0)


def test_budget_1_is_the_exhaustive_pass_of_every_band(
    pixels: NDArray[np.uint8], banded: Model, exhaustive: Analysis
) -> None:
    alone = [run(pixels, band, budget=1.0) for band in banded.bands]
    assert all(each.regions for each in alone)
    assert exhaustive.regions == once([each.regions for each in alone], banded)
    assert keys(exhaustive.regions) <= set.union(*(keys(each.regions) for each in alone))
    assert exhaustive.cost.macs == sum(each.cost.macs for each in alone) == exhaustive.cost.exhaustive_macs
    assert exhaustive.refined.all()
    assert exhaustive.refined.shape == banded.cell_shape((700, 900))
    assert exhaustive.complete
    assert exhaustive.plan.covered().all()


def test_objects_of_both_bands_come_once(exhaustive: Analysis) -> None:
    boxes = np.array([r.full_box for r in exhaustive.regions])
    labels = np.array([r.label for r in exhaustive.regions])
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = (high - low).clip(min=0).prod(axis=2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    overlap = common / (area[:, None] + area - common)
    # Boxes at the image's edge are cut after the suppression within a band.
    inner = np.all((boxes[:, :2] > 0) & (boxes[:, 2:] < (700, 900)), axis=1)
    np.fill_diagonal(overlap, 0)
    alike = (labels[:, None] == labels) & inner[:, None] & inner
    # Within a band, means of boxes may overlap a little more than the boxes that were kept.
    assert overlap[alike].max() < 0.5


@pytest.mark.parametrize("budget", [0.15, 0.3, 0.7])
def test_one_budget_is_divided(pixels: NDArray[np.uint8], banded: Model, exhaustive: Analysis, budget: float) -> None:
    found = run(pixels, banded, budget=budget)
    assert budget * 0.8 < found.cost.share <= budget
    assert found.cost.exhaustive_macs == exhaustive.cost.exhaustive_macs
    assert found.regions
    assert found.plan.sides.min() < 4 <= found.plan.sides.max()  # of both bands


def test_a_budget_must_pay_for_all_scans(pixels: NDArray[np.uint8], banded: Model) -> None:
    with pytest.raises(ValueError, match="does not pay for the scan"):
        run(pixels, banded, budget=1e-3)


@pytest.mark.parametrize("cells", [1, 100, 1500])
def test_cells_are_divided(pixels: NDArray[np.uint8], banded: Model, cells: int) -> None:
    found = run(pixels, banded, cells=cells)
    assert 0 < found.cost.cells_refined <= cells


def test_enough_cells_are_the_exhaustive_pass(pixels: NDArray[np.uint8], banded: Model, exhaustive: Analysis) -> None:
    whole = run(pixels, banded, cells=exhaustive.cost.cells)
    assert whole.regions == exhaustive.regions
    assert whole.cost.scan_macs == 0
    assert run(pixels, banded, cells=exhaustive.cost.cells - 1).cost.scan_macs > 0


def test_seconds_end_every_band(pixels: NDArray[np.uint8], banded: Model) -> None:
    found = run(pixels, banded, seconds=1e-6, budget=0.5, batch_size=1)
    assert not found.failures
    assert not found.complete
    # Of each band one batch: the work at hand is finished.
    assert 0 < found.cost.refine_macs < 0.4 * found.cost.exhaustive_macs


def test_each_band_has_its_own_certificate(pixels: NDArray[np.uint8], banded: Model, exhaustive: Analysis) -> None:
    found = run(pixels, banded, recall=0.8)
    audit = found.audit
    assert audit is not None
    assert [(part.kind, part.plane) for part in audit.kinds] == [("object", 1), ("object", 4)]
    assert audit.certified
    # Each error probability is half of 5 %: both statements hold together.
    assert all(part.confidence == pytest.approx(0.975) for part in audit.kinds)
    assert audit.confidence == 0.95
    assert len(keys(found.regions) & keys(exhaustive.regions)) >= 0.75 * len(exhaustive.regions)
    assert "at 1/4" in str(audit)
    assert Audit.from_json(audit.to_json()) == audit


def test_samples_of_bands_are_pooled_apart(pixels: NDArray[np.uint8], banded: Model) -> None:
    audits = [run(pixels, banded, audit=0.2, seed=seed).audit for seed in range(2)]
    pooled = Audit.pooled(audits)
    assert [part.plane for part in pooled.kinds] == [1, 4]
    for number, part in enumerate(pooled.kinds):
        assert part.found == sum(audit.kinds[number].found for audit in audits if audit is not None)


def test_a_mask_holds_for_every_band(pixels: NDArray[np.uint8], banded: Model) -> None:
    mask = np.zeros(pixels.shape[:2], bool)
    mask[:320, :320] = True
    found = run(pixels, banded, budget=1.0, mask=mask)
    assert found.refined[:40, :40].all()
    assert found.refined.sum() == 40**2
    assert found.cost.cells == 40**2 + 10**2


def test_a_file_holds_all_bands(tmp_path: Path, pixels: NDArray[np.uint8], banded: Model, exhaustive: Analysis) -> None:
    loaded = load_model(banded.save(tmp_path / "banded.c2f"))
    assert len(loaded.bands) == 2
    assert loaded.labels == banded.labels
    assert run(pixels, loaded, budget=1.0).regions == exhaustive.regions
    assert loaded.save(tmp_path / "again.c2f").read_bytes() == (tmp_path / "banded.c2f").read_bytes()
    assert "objects of 90 to 400 px: scan at 1/8, refine at 1/4" in str(loaded)


def test_bands_that_do_not_suit_each_other_are_refused(tmp_path: Path, banded: Model, detector: Model) -> None:
    path = banded.save(tmp_path / "banded.c2f")
    arrays, text = read_model_file(path)
    text["bands"][0]["geometry"] |= {"refine_downsample": 1, "fine": 4}
    path.write_bytes(packed(arrays, text))
    with pytest.raises(ModelError, match="does not describe a whole model"):
        load_model(path)
    with pytest.raises(ValueError, match="without bands of their own"):
        replace(detector, others=(banded,))
    with pytest.raises(ValueError, match="the finest first"):
        replace(detector, others=(detector,))


def test_results_are_saved_and_read(tmp_path: Path, pixels: NDArray[np.uint8], banded: Model) -> None:
    found = run(pixels, banded, budget=0.3)
    read = Analysis.load(found.save(tmp_path / "result"), pixels)
    assert keys(read.regions) == keys(found.regions)
    assert read.cost.macs == found.cost.macs
    np.testing.assert_array_equal(read.plan.cell_corners, found.plan.cell_corners)
    np.testing.assert_array_equal(read.refined, found.refined)
    assert read.provenance["model"]["bands"][0]["geometry"]["refine_downsample"] == 4


@pytest.mark.slow
def test_a_batch_of_one(tmp_path: Path, pixels: NDArray[np.uint8], banded: Model) -> None:
    tifffile.imwrite(tmp_path / "scene.tif", pixels, photometric="rgb")
    model = banded.save(tmp_path / "banded.c2f")
    batch = analyze_folder([tmp_path / "scene.tif"], tmp_path / "out", model, workers=1, progress=False, budget=0.3)
    assert [(record.status, record.error) for record in batch.records] == [("done", "")]


def test_a_checkpoint_holds_every_band(tmp_path: Path, pixels: NDArray[np.uint8], banded: Model) -> None:
    def analysed(checkpoint: StoredCheckpoint) -> list[Any]:
        with open_image(pixels) as image:
            made = AnalysisRun(image, banded, Config(budget=0.3, device="cpu", precision="fp32"), checkpoint)
            scans, learned = zip(*made.look(None), strict=True)
            plans = made.choose(scans)
            assert {band for band, _ in made.pieces(plans)} == {0, 1}
            return [fine.candidates.scores for fine in made.refine(plans, learned)]

    first, stored = StoredCheckpoint(tmp_path), StoredCheckpoint(tmp_path)
    for a, b in zip(analysed(first), analysed(stored), strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.reused == 0
    assert stored.reused == 4  # the scan and the windows of both


def test_ctrl_c_keeps_what_was_refined(
    pixels: NDArray[np.uint8], banded: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    from coarse2fine.refiners.detection import RunningDetection  # noqa: PLC0415

    whole = RunningDetection.__call__

    def stopping(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return whole(self, *args)

    monkeypatch.setattr(RunningDetection, "__call__", stopping)
    found = run(pixels, banded, budget=0.5)
    assert not found.complete
    assert calls == 2  # the other band did not begin


@given(st.integers(0, 10_000), st.integers(1, 4), st.floats(0.1, 10))
@settings(max_examples=25, deadline=None)
def test_what_is_worth_most_comes_first(banded: Model, seed: int, count: int, price: float) -> None:
    rng = np.random.default_rng(seed)
    dull, rich = (rng.random((12, 12), np.float32) * share for share in (np.float32(0.01), np.float32(1)))
    assert divide(count * price, banded.bands, [dull, rich], lambda *_: price) == [0, pytest.approx(count * price)]
    # Windows of the dull band that cost a thousandth are worth more.
    prices = {1: price / 1000, 4: price}
    shares = divide(price, banded.bands, [dull, rich], lambda model, _: prices[model.geometry.refine_downsample])
    assert shares[0] > 0
    assert sum(shares) == pytest.approx(price)


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40))
def test_maps_on_a_finer_grid(ratio: int, height: int, width: int) -> None:
    coarse = np.random.default_rng(0).random((-(-height // ratio), -(-width // ratio)))
    fine = map_on_grid(coarse, ratio, (height, width))
    y, x = np.indices((height, width)) // ratio
    np.testing.assert_array_equal(fine, coarse[y, x])
