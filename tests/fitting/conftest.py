"""Models that several tests of fitting use."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from coarse2fine import Model, fit
from tests.fitting.discs import QUICK, discs, smaller


@pytest.fixture(scope="module")
def small_steps() -> Iterator[None]:
    """See `smaller`."""
    with smaller():
        yield


@pytest.fixture(scope="session")
def fitted() -> Model:
    """A model of discs."""
    pixels, annotations = discs(0)[0]
    with smaller(slim=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "hardly anything was found in the held-out parts", UserWarning)
        return fit([pixels], [annotations], steps=60, name="discs", **QUICK)
