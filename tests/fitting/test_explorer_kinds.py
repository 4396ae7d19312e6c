"""Kinds of places without labels: measures against plain loops, windows against the whole, files and routes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.signal import convolve2d
from scipy.stats import multivariate_normal

from coarse2fine import analyze, load_model
from coarse2fine.fitting.explorer_kinds import add_kinds
from coarse2fine.model import Model
from coarse2fine.models.feature_tree import ROOT
from coarse2fine.models.mixture import Mixture
from coarse2fine.models.routing import features_at
from coarse2fine.models.runtime import Runtime
from coarse2fine.refiners.novelty import Measuring, NoveltyRefiner
from tests.refining import built_in, net

MakeImage = Callable[..., NDArray[np.uint8]]


Crops = Callable[[np.random.Generator], tuple[torch.Tensor, NDArray[np.int64]]]


@pytest.fixture(scope="module")
def crops(explorer: Model, make_image: MakeImage) -> Crops:
    """Soft blobs and noise."""
    side = net(explorer).spec.input_size(6)

    def draw(rng: np.random.Generator) -> tuple[torch.Tensor, NDArray[np.int64]]:
        image = rng.integers(0, 24, 6)
        soft = np.stack([make_image(side, side, seed=int(seed)) for seed in image[:3]])
        noise = rng.integers(0, 255, (3, side, side, 3))
        pixels = np.concatenate([soft, noise]).astype(np.float32) / 255
        return torch.from_numpy(((pixels - 0.5) / 0.25).transpose(0, 3, 1, 2).copy()), image

    return draw


@pytest.fixture(scope="module")
def model(explorer: Model, crops: Crops) -> Model:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coarse2fine.fitting.explorer_kinds._BATCHES", 16)
        patch.setattr("coarse2fine.fitting.explorer_kinds._CLUSTERS", 3)
        return add_kinds(explorer, crops, 0)


def test_the_columns_paint_better_than_the_code_alone(model: Model, make_image: MakeImage, runtime: Runtime) -> None:
    found = measured(model, make_image(80, 80, seed=5000), runtime)[0]
    assert float(found[1].mean()) < float(found[0].mean()) - 0.04
    assert len(np.unique(found[-1])) > 1


@torch.inference_mode()
def measured(model: Model, pixels: NDArray[np.uint8], runtime: Runtime) -> tuple[NDArray[np.float32], torch.Tensor]:
    """Measures (7, h, w) of a whole image, and the encoder's input."""
    refiner = built_in(model)
    assert isinstance(refiner, NoveltyRefiner)
    margin, spec = refiner.margin, refiner.net.spec
    padded = np.pad(pixels, ((margin,) * 2, (margin,) * 2, (0, 0)), mode="edge")
    x = torch.from_numpy(((padded / 255 - 0.5) / 0.25).astype(np.float32)).permute(2, 0, 1)[None]
    measuring = Measuring(refiner, runtime, lambda _: x)
    found = measuring(padded[None])[1][0].numpy()
    cells = found.shape[1] * found.shape[2]
    (columns,) = refiner.specialists
    macs = measuring.macs_spent - spec.macs(*found.shape[1:])
    assert 0.5 < macs / cells / columns.macs_per_cell < 2
    return found, x


@torch.inference_mode()
def one_cell(
    model: Model, x: torch.Tensor, y: int, left: int
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """What the encoder reads and sees of a cell alone, its pixels, and what the code alone paints."""
    refiner = built_in(model)
    assert isinstance(refiner, NoveltyRefiner)
    assert refiner.decoder is not None
    spec, decoder = refiner.net.spec, refiner.decoder
    side = spec.input_size(1)
    part = x[:, :, y * spec.stride : y * spec.stride + side, left * spec.stride : left * spec.stride + side]
    features = refiner.net.features(part)
    code = refiner.net.head(features[-1])[0, :, 0, 0]
    true = part[0, :, spec.margin : -spec.margin, spec.margin : -spec.margin].flatten()
    return part, features, true, code @ torch.from_numpy(decoder[:-1]) + torch.from_numpy(decoder[-1])


def test_measures_are_those_of_each_cell_alone(model: Model, make_image: MakeImage, runtime: Runtime) -> None:
    found, x = measured(model, make_image(32, 40, seed=1), runtime)
    tree = model.tree
    assert tree is not None
    for y, left in np.ndindex(*found.shape[1:]):
        part, features, true, answer = one_cell(model, x, y, left)
        with torch.inference_mode():
            errors = [float((answer - true).square().mean())]
            inputs = tree.layout.read(part, features)
            node = ROOT
            stages: list[torch.Tensor] = []
            while len(tree.clusters.children(node)):
                node = int(tree.clusters.step(node, features_at(inputs[-1], stages))[0])
                added, stages = tree.columns[node](inputs, stages)
                answer = answer + added.flatten()
            errors.append(float((answer - true).square().mean()))
        errors.append(detail(part[0].numpy(), net(model).spec.margin))
        np.testing.assert_allclose(found[:3, y, left], np.log(np.array(errors) + 1e-4), atol=1e-3)
        np.testing.assert_allclose(found[3:6, y, left], true.view(3, -1).mean(dim=1), atol=1e-5)
        assert tree.clusters.leaves[int(found[6, y, left])] == node


def detail(part: NDArray[np.float32], margin: int) -> float:
    """Mean square of what a Gaussian of one pixel removes from the inner pixels of a patch (c, h, w)."""
    grey = part.mean(axis=0)
    row = (np.poly1d([0.5, 0.5]) ** 4).coeffs
    kernel = np.outer(row, row)
    removed = grey - convolve2d(grey, kernel, mode="same")
    return float(np.square(removed[margin:-margin, margin:-margin]).mean())


def test_of_few_images_nothing_is_sure(explorer: Model, crops: Crops) -> None:
    def draw(rng: np.random.Generator) -> tuple[torch.Tensor, NDArray[np.int64]]:
        x, image = crops(rng)
        return x, image % 9

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coarse2fine.fitting.explorer_kinds._BATCHES", 6)
        patch.setattr("coarse2fine.fitting.explorer_kinds._CLUSTERS", 3)
        with pytest.warns(UserWarning, match=r"no columns for kinds: .*is significant with fewer than 5 groups"):
            found = add_kinds(explorer, draw, 0)
    assert found.refiner == explorer.refiner
    assert "in 4 groups" in found.provenance["kinds"]


def test_where_all_is_alike_there_are_no_kinds(explorer: Model) -> None:
    side = net(explorer).spec.input_size(6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coarse2fine.fitting.explorer_kinds._BATCHES", 2)
        found = add_kinds(explorer, lambda rng: (torch.zeros(3, 3, side, side), rng.integers(0, 24, 3)), 0)
    assert found.refiner.specialists == ()
    assert found.labels == explorer.labels
    assert analyze(np.full((90, 90, 3), 127, np.uint8), found, precision="fp32").complete


def test_the_account_of_kinds_is_exact(model: Model, make_image: MakeImage) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)
    for image in (make_image(400, 400), pixels):
        assert analyze(image, model, budget=0.5, precision="fp32").cost.share <= 0.5


def test_what_is_found_does_not_depend_on_windows(model: Model, make_image: MakeImage) -> None:
    pixels = make_image(96, 128, seed=3)
    pixels[40:56, 60:80] = np.random.default_rng(0).integers(0, 255, (16, 20, 3))
    low = replace(model, threshold=0.9)
    whole = analyze(pixels, low, budget=4.0, precision="fp32")
    again = analyze(pixels, low, budget=4.0, precision="fp32", batch_size=1)
    assert whole.refined.all()
    assert whole.regions == again.regions
    assert whole.regions
    # Every region names its way down to its kind.
    assert model.tree is not None
    for region in whole.regions:
        assert region.route == model.tree.route(region.route[-1])
        assert region.route[-1] in model.tree.clusters.leaves


def test_painting_is_in_the_account(model: Model, explorer: Model, make_image: MakeImage) -> None:
    pixels = make_image(160, 160, seed=4)
    assert model.window_macs(2, 2) > explorer.window_macs(2, 2)
    for budget in (0.6, 1.2):
        found = analyze(pixels, model, budget=budget, precision="fp32")
        assert found.cost.refine_macs > 0
    assert analyze(pixels, model, budget=0.6, precision="fp32").cost.share <= 0.6


def test_low_precision_runs_too(model: Model, make_image: MakeImage) -> None:
    assert analyze(make_image(160, 160, seed=4), model, budget=2.0, precision="bf16").complete


def test_kinds_survive_a_model_file(model: Model, make_image: MakeImage, tmp_path: Path) -> None:
    first = load_model(model.save(tmp_path / "kinds.c2f"))
    again = load_model(first.save(tmp_path / "again.c2f"))
    assert first.labels == model.labels
    assert str(first.tree) == str(model.tree)
    assert "specialists" in str(first)
    pixels = make_image(90, 90)
    one, two = (analyze(pixels, m, precision="fp32") for m in (first, again))
    assert one.regions == two.regions
    assert model.tree is not None
    assert model.tree.plot(tmp_path / "kinds.png").is_file()


def test_a_known_kind_is_a_gaussian_that_leans_on_the_others() -> None:
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 20_000)
    x = (rng.normal(0, 1, (20_000, 2)) @ np.array([[1, 0.5], [0, 2]]) + 7 * kind[:, None]).astype(np.float32)
    mixture = Mixture.of_kinds(x, kind, 3)
    found = mixture.within(torch.from_numpy(x), torch.from_numpy(kind)).numpy()
    for k in (0, 1):
        mine = x[kind == k].astype(np.float64)
        exact = -multivariate_normal(mine.mean(axis=0), np.cov(mine, rowvar=False)).logpdf(mine) - np.log(2 * np.pi)
        np.testing.assert_allclose(found[kind == k], exact, atol=0.05)
    # A kind of which nothing is known is like all of them together.
    nowhere = mixture.within(torch.from_numpy(x[:5]), torch.full((5,), 2))
    assert bool(torch.isfinite(nowhere).all())
    np.testing.assert_allclose(mixture.means[2].numpy(), x.mean(axis=0), atol=1e-3)


def test_no_colour_is_beyond_doubt(model: Model) -> None:
    """What columns reconstruct are no logits, however large."""
    narrow = replace(model, mean=(0.05,) * 3, std=(0.02,) * 3)
    assert analyze(np.full((160, 160, 3), 255, np.uint8), narrow, budget=1.0).complete
