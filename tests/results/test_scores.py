"""Scores as text."""

import pytest

from coarse2fine.results.scores import score_text


@pytest.mark.parametrize(
    ("score", "text"),
    [(0.0, "0.00"), (0.873, "0.87"), (0.9949, "0.99"), (0.996, "0.996"), (0.99973, "0.9997"), (1.0, "1.00")],
)
def test_a_score_below_1_is_not_shown_as_1(score: float, text: str) -> None:
    assert score_text(score) == text


def test_higher_scores_are_not_shown_as_lower_ones() -> None:
    scores = [n / 100_000 for n in range(100_000)]
    shown = [float(score_text(score)) for score in scores]
    assert shown == sorted(shown)
    assert max(shown) < 1
