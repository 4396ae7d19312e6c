"""Going on from a fitted model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coarse2fine import AnnotationError, Geometry, Model, ModelError, fit
from coarse2fine.fitting.resume import unfolded
from coarse2fine.models.base import Base
from coarse2fine.refiners.net import net_of
from tests.conftest import lively_net
from tests.fitting.discs import QUICK, collection, discs, feature, smaller

pytestmark = pytest.mark.filterwarnings("ignore:hardly anything was found in the held-out parts:UserWarning")


@pytest.fixture(scope="module")
def small_steps() -> Iterator[None]:
    """As `fitted` was made; see `smaller`."""
    with smaller(slim=True):
        yield


def test_unfolded_norms_change_nothing_and_are_folded_again() -> None:
    net = lively_net(3, "4/2:12 3:16 1:5", 0)
    typical, other = torch.randn(4, 3, 40, 40), torch.randn(2, 3, 30, 30) * 2 + 1
    again = unfolded(net, typical)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(other), net(other), rtol=1e-4, atol=1e-4)
        # Trained on typical inputs, it begins where it was too.
        torch.testing.assert_close(again.train()(typical), net(typical), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(unfolded(net, typical).folded()(other), net(other), rtol=1e-4, atol=1e-4)


def distance(one: Base, other: Base) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return float(torch.stack([(a - b).square().sum() for a, b in pairs]).sum().sqrt())


@pytest.mark.slow
def test_a_model_goes_on_with_another_scene(fitted: Model, small_steps: None, tmp_path: Path) -> None:
    scenes = [discs(seed)[0] for seed in (0, 5)]
    images, annotations = [pixels for pixels, _ in scenes], [known for _, known in scenes]
    path = fitted.save(tmp_path / "old.c2f")
    more, again = (fit(images, annotations, model=old, steps=60, **QUICK) for old in (path, fitted))
    fresh = fit(images, annotations, steps=15, **QUICK)
    assert (more.labels, more.geometry) == (fitted.labels, fitted.geometry)
    assert (*more.mean, *more.std) == pytest.approx((*fitted.mean, *fitted.std))
    assert more.provenance["went_on_from"] == "discs"
    assert more.provenance["steps"] == 15
    assert more.provenance["objects"] == 80
    for nets in (
        [m.base for m in (more, again, fresh, fitted)],
        [net_of(m.refiner) for m in (more, again, fresh, fitted)],
    ):
        assert distance(nets[0], nets[1]) < 1e-5
        assert 0 < distance(nets[0], nets[3]) < 0.5 * distance(nets[2], nets[3])


def test_what_cannot_go_on_is_refused(fitted: Model, explorer: Model) -> None:
    pixels, annotations = discs(0)[0]
    known: dict[str, Any] = {"annotations": [annotations], "progress": False}
    with pytest.raises(ValueError, match="geometry and width cannot be given with model"):
        fit([pixels], model=fitted, geometry=Geometry(8, 2, 1), width=2.0, **known)
    with pytest.raises(ModelError, match="was not fitted to annotations"):
        fit([pixels], model=explorer, **known)
    barn = collection(feature("barn", [[9, 9], [30, 9], [30, 30], [9, 30]]))
    with pytest.raises(AnnotationError, match="discs does not know barn: its classes are disc"):
        fit([pixels], [barn], model=fitted, progress=False)


def test_images_are_read_as_those_of_the_model(fitted: Model, small_steps: None) -> None:
    # A colour image, for a model of grey ones.
    pixels, annotations = discs(0)[0]
    colour = np.repeat(pixels[..., None], 3, axis=2)
    more = fit([colour], [annotations], model=replace(fitted, name="grey"), steps=40, **QUICK)
    assert more.channels == 1
