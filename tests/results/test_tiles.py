"""Tiles as HDF5: where they lie, what the refine net says of them, and what other tools ask of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine import ImageError, analyze, open_image
from coarse2fine.model import Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.results.tiles import Patches, interesting_patches, with_features, write_patches
from coarse2fine.tiling.geometry import Box
from tests.refining import net

h5py = pytest.importorskip("h5py")

MakeImage = Callable[..., NDArray[np.uint8]]


@given(st.integers(0, 10**6), st.sampled_from([1, 4, 7, 8, 20]), st.sampled_from([1, 3, 8, 24, 100]))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_squares_are_those_that_a_loop_over_pixels_finds(seed: int, cell: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = rng.random((4, 5)) < 0.2
    pixels = np.kron(chosen, np.ones((cell, cell), bool))
    expected = sorted({(y // side * side, x // side * side) for y, x in np.argwhere(pixels).tolist()})
    assert [tuple(c) for c in interesting_patches(chosen, cell, side).full_corners.tolist()] == expected


def test_features_are_means_over_the_tile(make_image: MakeImage, detector: Model, runtime: Runtime) -> None:
    pixels = make_image(150, 200)
    image = open_image(pixels)
    patches = with_features(Patches(64, np.array([(0, 0), (64, 128), (128, 192)])), image, detector, runtime)
    assert patches.features is not None
    assert patches.features.shape == (3, net(detector).spec.stages[-2].channels)
    margin = detector.refiner.margin
    x = image.read(Box(64, 128, 128, 192).expand(margin)) / 255.0
    x = (x - np.array(detector.mean)) / np.array(detector.std)
    with torch.inference_mode():
        high = net(detector).features(torch.from_numpy(x).float().permute(2, 0, 1)[None])[-1][0]
    assert high.shape[1:] == (8, 8)
    np.testing.assert_allclose(patches.features[1], high.mean(dim=(1, 2)).numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="expected tiles of a multiple of 8 px, the model's fine cell, got 60"):
        with_features(Patches(60, np.array([(0, 0)])), image, detector, runtime)


def test_a_file_as_other_tools_expect_it(make_image: MakeImage, detector: Model, tmp_path: Path) -> None:
    image = open_image(make_image(300, 500), mpp=0.26)
    with analyze(image, detector, budget=0.4, precision="fp32") as analysis:
        paths = [analysis.to_h5(tmp_path / f"{name}.h5", detector, tile=64) for name in "ab"]
        bare = analysis.to_h5(tmp_path / "bare.h5", tile=64)
        chosen = analysis.plan.covered() & analysis.refined
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with h5py.File(paths[0], "r") as file:
        coords, features = file["coords"][:], file["features"][:]
        assert coords.dtype == np.int64
        assert features.dtype == np.float32
        assert len(coords) == len(features) > 0
        attributes = dict(file["coords"].attrs)
        assert file["coords"].maxshape == (None, 2)
    assert np.isfinite(features).all()
    expected = {(x * 8 // 64 * 64, y * 8 // 64 * 64) for y, x in np.argwhere(chosen).tolist()}
    assert {tuple(c) for c in coords.tolist()} == expected  # (x, y)
    assert attributes["patch_size"] == attributes["patch_size_level0"] == 64
    assert attributes["patch_level"] == attributes["overlap"] == 0
    assert attributes["level_dim"].tolist() == [500, 300]
    assert attributes["level0_magnification"] == attributes["target_magnification"] == 40
    with h5py.File(bare, "r") as file:
        assert set(file) == {"coords"}
        np.testing.assert_array_equal(file["coords"][:], coords)


@pytest.mark.parametrize(("mpp", "magnification"), [(0.5, 20), (0.45, 20), (1.0, 10), (3.0, None), (None, None)])
def test_a_magnification_is_never_made_up(
    make_image: MakeImage, tmp_path: Path, mpp: float | None, magnification: int | None
) -> None:
    image = open_image(make_image(20, 20), mpp=mpp)
    path = write_patches(tmp_path / "a.h5", interesting_patches(np.zeros((2, 2), bool), 8, 16), image)
    with h5py.File(path, "r") as file:
        assert file["coords"].shape == (0, 2)
        assert file["coords"].attrs.get("level0_magnification") == magnification


def test_what_cannot_be_read_is_left_out(
    make_image: MakeImage, detector: Model, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = open_image(make_image(128, 128))
    plain = type(image).read

    def read(self: object, box: Box, level: int = 0) -> NDArray[np.uint8]:
        if box.y0 > 40:
            raise ImageError("damaged")
        return plain(image, box, level)

    monkeypatch.setattr(type(image), "read", read)
    patches = with_features(Patches(64, np.array([(0, 0), (64, 0), (0, 64)])), image, detector, runtime)
    assert patches.full_corners.tolist() == [[0, 0], [0, 64]]
    assert patches.features is not None
    assert len(patches.features) == 2


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_annotated_table_holds_the_same(make_image: MakeImage, detector: Model, tmp_path: Path) -> None:
    pytest.importorskip("anndata")
    with analyze(make_image(200, 300), detector, budget=0.4, precision="fp32") as analysis:
        table = analysis.to_anndata(detector, tile=64)
        with h5py.File(analysis.to_h5(tmp_path / "a.h5", detector, tile=64)) as file:
            np.testing.assert_array_equal(table.X, file["features"][:])
            np.testing.assert_array_equal(table.obsm["spatial"], file["coords"][:] + 32)
    assert len(set(table.obs_names)) == len(table)
    table.write_h5ad(tmp_path / "a.h5ad")
