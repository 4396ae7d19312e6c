"""Which answers are unsure, against plain loops."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coarse2fine.models.gate import Gate


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1), st.booleans())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_an_answer_is_unsure_if_a_probability_lies_in_the_band(seed: int, a: float, b: float, exclusive: bool) -> None:
    gate = Gate(min(a, b), max(a, b), exclusive)
    answers = 3 * np.random.default_rng(seed).standard_normal((5, 3, 2))
    found = gate.unsure(torch.from_numpy(answers))
    assert found.shape == (5, 2)
    for item, position in np.ndindex(5, 2):
        logits = answers[item, :, position]
        shares = np.exp(logits) / np.exp(logits).sum()
        decisive = [shares.max()] if exclusive else 1 / (1 + np.exp(-logits))
        assert bool(found[item, position]) == any(gate.low <= p < gate.high for p in decisive)


def test_an_open_gate_lets_all_pass() -> None:
    answers = torch.randn(50, 4)
    assert Gate.open(exclusive=True).unsure(answers).all()
    assert Gate.open(exclusive=False).unsure(answers).all()
