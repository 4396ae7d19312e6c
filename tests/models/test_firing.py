"""From activations to the probability that looking again pays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.firing import (
    NO_FEATURE,
    Curve,
    Discriminant,
    Firing,
    Rule,
    area_for_recall,
    calibrate_firing,
    features_choose,
    linear_discriminant,
)


def cells(seed: int, count: int = 4000) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Activations of six features (four of them tell something), a logit, and what is there."""
    rng = np.random.default_rng(seed)
    there = rng.random(count) < 0.05
    pull = np.array([1.5, 1.0, -1.0, 0.5, 0.0, 0.0])
    high = np.maximum(rng.normal(0, 1, (count, 6)) + there[:, None] * pull, 0).astype(np.float32)
    logit = (rng.normal(-3, 1, count) + 2 * there).astype(np.float32)
    return high, logit, there.astype(np.float32)


def discriminant(high: NDArray[np.float32], there: NDArray[np.float32]) -> Discriminant:
    found = linear_discriminant(high, there)
    assert found is not None
    return found


def as_planes(high: NDArray[np.float32], logit: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(high.T.copy())[None, :, :, None], torch.from_numpy(logit)[None, None, :, None]


@given(st.integers(0, 10**6), st.integers(1, 300), st.sampled_from(["normal", "relu", "constant", "counts"]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_curve_is_monotone_and_a_probability(seed: int, count: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, count)
    values = {"relu": values.clip(0), "constant": values * 0, "counts": values.round()}.get(kind, values)
    targets = rng.random(count).astype(np.float32)
    curve = Curve.fit(values.astype(np.float32), targets)
    assert len(curve.precision) == len(curve.edges) + 1
    assert np.all(np.diff(curve.edges) > 0)
    assert np.all(np.diff(curve.precision) >= 0)
    assert curve.precision.min() >= 0
    assert curve.precision.max() <= 1
    at = torch.from_numpy(np.sort(values.astype(np.float32)))
    assert bool((curve(at).diff() >= 0).all())


def test_a_curve_gives_the_precision_of_each_bin() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(200_000).astype(np.float32)
    targets = (rng.random(len(values)) < values**2).astype(np.float32)
    found = Curve.fit(values, targets)(torch.tensor([0.8, 0.95]))
    assert found.tolist() == pytest.approx([0.8**2, 0.95**2], abs=0.05)


def test_the_discriminant_orders_unseen_cells_better_than_any_feature() -> None:
    high, _, there = cells(1)
    seen, _, known = cells(2)

    def auroc(score: NDArray[np.float32]) -> float:
        return float(mannwhitneyu(score[there > 0], score[there == 0]).statistic / (there.sum() * (there == 0).sum()))

    found = auroc(discriminant(seen, known)(high))
    assert found > 0.85
    assert found > max(auroc(high[:, f]) for f in range(6)) + 0.03


def test_the_discriminant_is_that_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.discriminant_analysis")
    rng = np.random.default_rng(3)
    there = rng.random(60_000) < 0.5  # both kinds alike, so that both means of the covariances are one
    high = rng.normal(0, 1, (60_000, 4)) @ rng.normal(0, 1, (4, 4)) + there[:, None] * [1, 0, -1, 0.5]
    high = high.astype(np.float32)
    ours = discriminant(high, there.astype(np.float32))
    theirs = sklearn.LinearDiscriminantAnalysis().fit(high, there)
    agreed = np.corrcoef(ours(high), theirs.decision_function(high))[0, 1]
    assert agreed > 0.97  # ours is shrunk


def test_the_features_choose_unless_the_logit_needs_far_less_area() -> None:
    found = discriminant(*cells(4, 20_000)[::2])
    high, logit, there = cells(3, 20_000)
    chosen, areas = features_choose(found, high, logit, there)
    assert areas["discriminant"] < 1.1 * areas["logit"]
    assert chosen
    assert areas["discriminant"] == area_for_recall(found(high), there, 0.95)
    chosen, areas = features_choose(found, high, (3 * there + logit).astype(np.float32), there)
    assert areas["discriminant"] > 1.1 * areas["logit"]
    assert not chosen


def test_features_that_tell_nothing_or_never_fire_do_no_harm() -> None:
    high, _, there = cells(5)
    dead = np.concatenate([high, np.zeros_like(high)], axis=1)
    found = discriminant(dead, there)
    assert np.all(found.weights[6:] == 0)
    assert np.allclose(found(dead), discriminant(high, there)(high), atol=1e-4)
    assert np.all(np.isfinite(discriminant(np.zeros((50, 3), np.float32), there[:50] * 0 + 0.5).weights))


@pytest.mark.parametrize("there", [0, 29, 971, 1000])
def test_few_finds_give_no_weights(there: int) -> None:
    high = np.random.default_rng(0).random((1000, 6)).astype(np.float32)
    assert linear_discriminant(high, (np.arange(1000) < there).astype(np.float32)) is None
    assert linear_discriminant(high, (np.arange(1000) < 30).astype(np.float32)) is not None


def test_probability_rises_with_the_raw_score_and_is_calibrated() -> None:
    high, _, there = cells(4, 40_000)
    rng = np.random.default_rng(4)
    logit = (rng.normal(-3, 1, len(there)) + 3 * there).astype(np.float32)
    firing = calibrate_firing(high, logit, there)
    found = firing.probability(*as_planes(high, logit))[0, :, 0].numpy()
    assert found.mean() == pytest.approx(there.mean(), rel=0.3)
    ordered = found[np.argsort(logit, kind="stable")]
    assert np.all(np.diff(ordered) >= 0)
    assert len(np.unique(found)) > 0.9 * len(np.unique(logit))  # ranks are kept
    beyond = torch.tensor([-99.0, 99.0])[None, None, :, None]
    ends = firing.probability(torch.zeros(1, 6, 2, 1), beyond)[0, :, 0]
    assert ends.tolist() == pytest.approx([found.min(), found.max()], rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("there", [0.0, 1.0])
def test_nothing_or_everything_there_stays_finite(there: float) -> None:
    high, logit, targets = cells(5, 500)
    found = calibrate_firing(high, logit, np.full_like(targets, there)).probability(*as_planes(high, logit))
    assert bool(torch.isfinite(found).all())
    assert float(found.mean()) == pytest.approx(there, abs=1e-3)


def test_strongest_features_have_the_greatest_lift() -> None:
    high, logit, there = cells(6)
    firing = calibrate_firing(high, logit, there)
    rows = torch.from_numpy(high[:50])
    named = firing.strongest(rows, 3)
    assert named.dtype == torch.uint8
    lift = {f: c(rows[:, f]).numpy() for f, c in zip(firing.features.tolist(), firing.curves, strict=True)}
    for row, names in enumerate(named.tolist()):
        above = sorted((v[row] for v in lift.values() if v[row] > firing.prior), reverse=True)
        assert [lift[f][row] for f in names if f != NO_FEATURE] == above[:3]
        assert names == sorted(names, key=lambda f: f == NO_FEATURE)
    assert (named == NO_FEATURE).any()


def test_a_model_of_few_features_names_few() -> None:
    high, logit, there = cells(7, 500)
    firing = calibrate_firing(high[:, :2], logit, there)
    assert firing.strongest(torch.from_numpy(high[:5, :2]), 3).shape == (5, 2)


@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0.05, 1.0))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_area_for_recall_is_the_shortest_prefix(seed: int, count: int, recall: float) -> None:
    rng = np.random.default_rng(seed)
    scores, targets = rng.random(count).astype(np.float32), rng.integers(0, 3, count).astype(np.float32)
    targets[0] = 1
    order = sorted(range(count), key=lambda i: -scores[i])
    wanted = next(n for n in range(1, count + 1) if targets[order[:n]].sum() >= recall * float(targets.sum()))
    assert area_for_recall(scores, targets, recall) == wanted / count


def test_firing_is_a_value() -> None:
    firing = calibrate_firing(*cells(8, 300))
    assert isinstance(firing, Firing)
    with pytest.raises(AttributeError):
        firing.rule = "logit"  # type: ignore[misc]


def test_looked_up_probabilities_are_those_computed() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 3, 4000).astype(np.float32)
    targets = (rng.random(4000) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    firing = calibrate_firing(rng.random((4000, 5)).astype(np.float32), logit, targets)
    low = torch.from_numpy(rng.normal(0, 9, (2, 1, 30, 40))).bfloat16()
    high = torch.zeros(2, 5, 30, 40)
    assert torch.equal(firing.probability(high, low), firing.probability(high, low.float()))


@pytest.mark.parametrize("rule", ["log-lift", "noisy-or"])
def test_rules_of_older_models_still_rank_unseen_cells(rule: Rule) -> None:
    seen, _, known = cells(1)
    high, logit, there = cells(2)
    firing = replace(calibrate_firing(seen, known, known), rule=rule)
    score = firing.probability(*as_planes(high, logit))[0, :, 0].numpy()
    assert mannwhitneyu(score[there > 0], score[there == 0]).statistic / (there.sum() * (there == 0).sum()) > 0.75


@pytest.mark.parametrize("bias", [True, False])
def test_a_base_answers_by_the_weights_that_it_is_given(bias: bool) -> None:
    net = ConvStack(StackSpec.parse(1, "4/4:3 1:1"))
    if not bias:  # as a base of another package may be
        net.reader.bias = None
    x, weights = torch.rand(1, 1, 8, 8), np.array([0.5, -2.0, 3.0], np.float32)
    before = net(x)
    found = net.read_by(weights, -1.5)
    expected = np.tensordot(weights, net.high(x).detach().numpy()[0], 1) - (1.5 if bias else 0)
    np.testing.assert_allclose(found(x).detach().numpy()[0, 0], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(net(x), before)
