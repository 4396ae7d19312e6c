"""Ways to run the same net over an image find the same."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from benchmarks.experts.rivals import same_share
from benchmarks.peers.tools import PACKAGES, TOOLS

from coarse2fine import Model, load_model
from coarse2fine.bench.gigapixel import HugeScenes


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(HugeScenes(tmp_path_factory.mktemp("scenes"), objects=20_000).make(0.0008, 1).image)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("digits")


@pytest.mark.parametrize("name", ["plain loop", "dask", "monai", "sahi", "supervision"])
def test_tools_agree_with_the_exhaustive_pass(name: str, scene: str, model: Model) -> None:
    if name in PACKAGES and find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{name} is not installed")
    reference = TOOLS["ours, exhaustive"](scene, model)
    assert len(reference) > 10
    # Tools that slice also keep what lies between two slices, and join it by rules of their own.
    least = 0.8 if name in ("sahi", "supervision") else 1.0
    assert same_share(TOOLS[name](scene, model), reference) >= least
