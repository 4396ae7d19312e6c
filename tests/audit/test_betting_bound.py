"""Bounds on what was missed: exact on small populations, simulated on larger ones, beside the textbook's."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, chisquare, hypergeom

from coarse2fine.audit.betting_bound import _STAKES, MissBound, audit_weights, doubling
from coarse2fine.audit.sampling_bound import Sample, allowed_misses, inclusion, least_share, pool, recall_interval

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

KINDS = ("none", "single", "spread", "clustered", "full", "heavy")
HOPES = ("blind", "good", "wrong", "noisy")
SEEDS = (5, pytest.param(21, marks=pytest.mark.slow))
"""Worlds of each kind and hope: 120 in all, and 504 in `make slow`."""


def population(rng: np.random.Generator, kind: str, hope: str, blocks: int) -> tuple[Counts, Floats, int]:
    """What each block holds, what the scan expects there, and the cap."""
    cap = int(rng.integers(1, 9))
    y = np.zeros(blocks, np.int64)
    some = rng.permutation(blocks)[: max(1, int(blocks * rng.choice([0.002, 0.01, 0.05, 0.3])))]
    if kind == "single":
        y[some[0]] = 1
    elif kind == "spread":
        y[some] = 1
    elif kind == "clustered":
        y[some] = rng.integers(1, cap + 1, len(some))
    elif kind == "full":
        y[some] = cap
    elif kind == "heavy":
        y = rng.binomial(cap, 0.5, blocks)
    signal = {"blind": 0.0, "good": 2.0, "wrong": -2.0, "noisy": 0.5}[hope]
    expected = np.exp(signal * (y > 0) + rng.normal(size=blocks) * (hope != "blind"))
    return y, expected * (0.3 + rng.random()) * (y.sum() + 3) / expected.sum(), cap


def certify(bound: MissBound, y: Counts, expected: Floats, target: int, rng: np.random.Generator) -> bool:
    """Stop as soon as the target is met, refining the most promising blocks in between; whether it held throughout."""
    best_first = np.argsort(-expected)
    batch = int(rng.choice([3, 17, 64]))
    keen = rng.random() < 0.5
    unknown = np.ones(len(y), bool)
    for _ in range(200):
        if bound.upper < y.sum():
            return False
        if bound.missed <= target:
            break
        index = bound.draw(batch)
        # A batch is cut short now and then, as by an interruption.
        index = index[: int(rng.integers(1, batch + 1))]
        bound.see(index, y[index])
        unknown[index] = False
        if keen and bound.upper >= y.sum():
            index = best_first[unknown[best_first]][: int(rng.integers(0, batch))]
            bound.know(index, y[index])
            unknown[index] = False
    return bool(bound.upper >= y.sum())


@pytest.mark.parametrize("seeds", SEEDS)
def test_bound_covers_under_adaptive_stopping(seeds: int) -> None:
    held, runs = 0, 0
    for (kind, hope), seed in itertools.product(itertools.product(KINDS, HOPES), range(seeds)):
        rng = np.random.default_rng([seed, KINDS.index(kind), HOPES.index(hope)])
        y, expected, cap = population(rng, kind, hope, int(rng.choice([200, 400, 1000])))
        # The stop is set where it does most harm: just below the truth, as far as that goes.
        target = max(1, int(y.sum() * rng.choice([0.3, 0.7, 0.95])))
        bound = MissBound(expected, cap, target=target, confidence=0.9, seed=seed)
        held += certify(bound, y, expected, target, rng)
        runs += 1
    assert held >= 0.9 * runs


small = st.lists(st.integers(0, 2), min_size=3, max_size=5)


@given(small, st.lists(st.floats(0, 3), min_size=5, max_size=5), st.floats(0.5, 4), st.floats(0.3, 0.8))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_probability_of_ever_failing_by_enumeration(
    counts: list[int], hopes: list[float], target: float, confidence: float
) -> None:
    y = np.array(counts, np.int64)
    fresh = MissBound(hopes[: len(y)], 2, target=target, confidence=confidence)
    failing = 0.0
    for order in itertools.permutations(range(len(y))):
        bound = copy.deepcopy(fresh)
        bound._order = np.array(order, np.int64)
        weights = bound.weights[list(order)]
        chance = math.prod(weights[i] / weights[i:].sum() for i in range(len(order)))
        for i in order:
            bound.see([i], y[[i]])
            if bound.upper < y.sum():
                failing += chance
                break
    assert failing <= 1 - confidence + 1e-9


def test_enumeration_sees_failures() -> None:
    """The exact test above would be empty if the bound never came below the truth."""
    y = np.array([2, 0, 0, 0, 0, 0], np.int64)
    failed = 0
    for first in range(6):
        bound = MissBound(np.zeros(6), 2, target=1, confidence=0.5)
        bound._order = np.array([first, *(i for i in range(5, -1, -1) if i != first)])
        for _ in range(6):
            index = bound.draw(1)
            bound.see(index, y[index])
            failed += bound.upper < 2
    assert failed


@pytest.mark.parametrize("cap", [1, 4, 10])
def test_without_finds_the_rule_of_three(cap: int) -> None:
    blocks, target = 8000, 120
    bound = MissBound(np.zeros(blocks), cap, target=target)
    planned = bound.planned_draws(target)
    while bound.missed > target:
        index = bound.draw(8)
        bound.see(index, np.zeros(len(index), np.int64))
    rule = 3 * cap * blocks / target
    assert 0.9 * rule < bound.audited < 1.15 * rule
    assert 0.95 * bound.audited < planned < 1.15 * bound.audited


def test_with_finds_near_the_exact_bound_of_a_fixed_size() -> None:
    blocks, draws, ratios = 6000, 1200, []
    y = np.zeros(blocks, np.int64)
    y[:60] = 1
    for seed in range(20):
        bound = MissBound(np.full(blocks, 0.01), 1, target=60, seed=seed)
        index = bound.draw(draws)
        bound.see(index, y[index])
        exact = (
            next(t for t in itertools.count(bound.known) if hypergeom.cdf(bound.known, blocks, t, draws) <= 0.05) - 1
        )
        ratios.append(bound.upper / exact)
    assert 1 < np.mean(ratios) < 1.25


def test_good_scores_save_draws_and_wrong_ones_do_not_cost_many() -> None:
    rng = np.random.default_rng(5)
    y = np.zeros(6000, np.int64)
    y[rng.permutation(6000)[:80]] = 1
    draws = {}
    for hope, signal in (("blind", 0.0), ("good", 2.5), ("wrong", -2.5)):
        expected = np.exp(signal * y + rng.normal(size=6000) * abs(signal) / 2.5)
        took = []
        for seed in range(15):
            bound = MissBound(80 * expected / expected.sum(), 1, target=130, seed=seed)
            while bound.missed > 130:
                index = bound.draw(16)
                bound.see(index, y[index])
            took.append(bound.audited)
        draws[hope] = np.median(took)
    assert draws["good"] < 0.8 * draws["blind"]
    assert draws["wrong"] < 3 * draws["blind"]


@pytest.mark.parametrize("draws", [500, pytest.param(2000, marks=pytest.mark.slow)])
def test_draws_follow_the_weights_whatever_is_refined_in_between(draws: int) -> None:
    expected = np.array([0.0, 0.5, 3.0, 0.2, 1.0])
    first, later = np.zeros(5), np.zeros(5)
    for seed in range(draws):
        bound = MissBound(expected, 1, target=1, seed=seed)
        glimpse = bound.draw(2)
        first[glimpse[0]] += 1
        if glimpse[0] == 4:
            # What is refined depends on what was drawn and not seen: the next draw must not.
            bound.know([2], [1])
            later[bound.draw(1)[0]] += 1
    weights = bound.weights
    assert chisquare(first, draws * weights / weights.sum()).pvalue > 0.001
    rest = np.delete(weights, 2)
    assert chisquare(np.delete(later, 2), later.sum() * rest / rest.sum()).pvalue > 0.001


@pytest.mark.parametrize("seed", range(12))
def test_bound_is_that_of_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, caps = rng.integers(0, 3, 20), rng.integers(2, 4, 20)
    bound = MissBound(rng.gamma(0.3, size=20), caps, target=5, confidence=0.5, seed=seed)
    weights, stakes = bound.weights, _STAKES
    room = int(caps.sum())
    wealth = {total: bound._bets.wealth[total].copy() for total in range(room + 1)}
    ruled_out: set[int] = set()
    unknown, known = set(range(20)), 0
    for step in range(18):
        i = int(bound.draw(1)[0])
        mass = sum(weights[j] for j in unknown)
        most = max(caps[j] * mass / weights[j] for j in unknown)
        for total in range(known + 1, room + 1):
            q = min((total - known) / most, 1 - 1e-6)
            wealth[total] *= 1 + stakes * (q - y[i] * mass / weights[i] / most) / (1 - q)
            if wealth[total].sum() >= 2:
                ruled_out.add(total)
        bound.see([i], y[[i]])
        unknown.remove(i)
        known += int(y[i])
        if step % 5 == 4:
            j = max(unknown)
            bound.know([j], y[[j]])
            unknown.remove(j)
            known += int(y[j])
        left = known + sum(int(caps[j]) for j in unknown)
        assert bound.upper == max(known, min(left, max(set(wealth) - ruled_out)))
        if len(unknown) < 2:
            break


def test_batches_do_not_matter_and_draws_wait_to_be_seen() -> None:
    rng = np.random.default_rng(0)
    y, expected, cap = population(rng, "clustered", "good", 300)
    one, many = (MissBound(expected, cap, target=5, seed=3) for _ in range(2))
    order = one.draw(120)
    np.testing.assert_array_equal(one.draw(120), order)
    one.see(order, y[order])
    for i in order:
        many.see(many.draw(1), y[[i]])
    assert (one.upper, one.known, one.audited) == (many.upper, many.known, many.audited)
    assert one.estimate == pytest.approx(many.estimate)


def test_caps_are_doubled_where_a_block_holds_more() -> None:
    y = np.zeros(500, np.int64)
    y[:40] = 3
    small, large = (MissBound(np.zeros(500), cap, target=20, seed=1) for cap in (1, 4))
    for start in (0, 50):
        index = small.draw(50)
        np.testing.assert_array_equal(index, large.draw(50))
        small.see(index, y[index])
        large.see(index, y[index])
        assert small.cap == (1 if not y[large._order[: start + 50]].any() else 4)
    assert small.upper == large.upper
    assert doubling([2, 2], [4, 1]) == 2
    assert doubling([2, 2], [5, 1]) == 4
    assert doubling([2.0], [2]) == doubling([], []) == 1


def test_refined_blocks_too_tell_that_a_cap_is_too_small() -> None:
    bound = MissBound(np.zeros(100), 2, target=5)
    bound.see(bound.draw(30), np.zeros(30, np.int64))
    before = bound.upper
    bound.know(bound.draw(1), [7])
    assert bound.cap == 8
    assert bound.upper > 2 * before


def test_all_blocks_known_leaves_nothing_to_chance() -> None:
    rng = np.random.default_rng(2)
    y, expected, cap = population(rng, "clustered", "noisy", 200)
    bound = MissBound(expected, cap, target=1)
    assert math.isnan(bound.estimate)
    assert bound.upper == 200 * cap
    index = bound.draw(150)
    bound.see(index, y[index])
    index = bound.draw(1000)
    bound.know(index, y[index])
    assert (bound.unknown, bound.missed, bound.upper, bound.estimate) == (0, 0, y.sum(), y.sum())
    assert bound.planned_draws(0) == len(bound.draw(10)) == 0
    none = MissBound([], 3, target=1)
    assert (none.upper, none.missed, none.estimate, len(none.draw(5))) == (0, 0, 0.0, 0)


@pytest.mark.parametrize("runs", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_estimate_is_that_of_the_sample(runs: int) -> None:
    rng = np.random.default_rng(4)
    y = rng.integers(0, 3, 400)
    bound = MissBound(np.zeros(400), 2, target=5)
    index = bound.draw(100)
    bound.see(index, y[index])
    assert bound.estimate == pytest.approx(400 * y[index].mean())
    y, expected, cap = population(rng, "clustered", "good", 400)
    estimates = []
    for seed in range(runs):
        bound = MissBound(expected, cap, target=5, seed=seed)
        index = bound.draw(100)
        bound.see(index, y[index])
        estimates.append(bound.estimate)
    assert abs(np.mean(estimates) - y.sum()) < 4 * np.std(estimates) / math.sqrt(runs)


def test_plan_of_draws_is_near_what_it_takes() -> None:
    took, planned = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        expected = rng.gamma(0.3, size=4000)
        expected *= 30 / expected.sum()
        y = (rng.random(4000) < expected).astype(np.int64)
        bound = MissBound(expected, 1, target=100, seed=seed)
        planned.append(bound.planned_draws(100))
        while bound.missed > 100:
            index = bound.draw(16)
            bound.see(index, y[index])
        took.append(bound.audited)
    assert 0.6 < np.median(took) / np.median(planned) < 1.5
    assert MissBound(np.full(50, 0.5), 3, target=1).planned_draws(0) == 50


def test_entries_that_would_break_the_bound_are_refused() -> None:
    bound = MissBound(np.zeros(20), 2, target=3)
    index = bound.draw(4)
    with pytest.raises(ValueError, match="in its order"):
        bound.see(index[::-1], [0, 0, 0, 0])
    bound.see(index[:2], [0, 1])
    with pytest.raises(ValueError, match="known already"):
        bound.know(index[:1], [0])
    with pytest.raises(ValueError, match="known already"):
        bound.know([int(index[3])] * 2, [0, 0])
    with pytest.raises(ValueError, match="0 or more"):
        bound.know(index[3:], [-1])
    with pytest.raises(ValueError, match="for each a number"):
        bound.know(index[3:], [0, 1])
    for expected, cap, target, confidence, message in (
        ([-1.0], 1, 1, 0.9, "a finite number of objects"),
        ([math.nan], 1, 1, 0.9, "a finite number of objects"),
        ([1.0], 0.5, 1, 0.9, "caps must be 1 or more"),
        ([1.0], 1, 0, 0.9, "the target above 0"),
        ([1.0], 1, 1, 1.0, "expected a confidence between 0 and 1, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            MissBound(expected, cap, target=target, confidence=confidence)


def test_weights_follow_what_is_expected() -> None:
    np.testing.assert_array_equal(audit_weights(np.zeros(5), [1, 2, 3, 4, 5], 2), [1, 2, 3, 4, 5])
    expected = np.full(1000, 0.001)
    expected[:20] = 2
    weights = audit_weights(expected, 1, 80)
    assert weights.min() >= 1
    assert weights[:20].min() > 2 * weights[20:].max()


# The sample of fixed size.


def bernoulli(rng: np.random.Generator, p: Floats, y: Counts, cap: float | Floats) -> Sample:
    audited = np.flatnonzero(rng.random(len(p)) < p)
    return Sample.of(p, audited, y[audited], cap)


@pytest.mark.parametrize("seeds", SEEDS)
def test_sample_covers_alone_and_pooled(seeds: int) -> None:
    inside, above, runs = 0, 0, 0
    for (kind, hope), seed in itertools.product(itertools.product(KINDS, HOPES), range(seeds)):
        rng = np.random.default_rng([seed, KINDS.index(kind), HOPES.index(hope)])
        samples, left = [], 0
        for _ in range(int(rng.integers(1, 5))):
            y, expected, cap = population(rng, kind, hope, int(rng.choice([200, 1000])))
            p = inclusion(audit_weights(expected, cap, 20), len(y) * rng.choice([0.03, 0.1, 0.4]))
            samples.append(bernoulli(rng, p, y, cap))
            left += int(y[p < 1].sum())
        sample = pool(samples)
        low, high = sample.missed_interval(0.9)
        inside += low <= left - sample.found <= high
        above += left - sample.found <= sample.missed_upper(0.9)
        runs += 1
    assert min(inside, above) >= 0.9 * runs


@given(
    st.lists(st.integers(0, 2), min_size=3, max_size=6),
    st.lists(st.floats(0.1, 0.9), min_size=6, max_size=6),
    st.lists(st.integers(2, 4), min_size=6, max_size=6),
    st.floats(0.5, 0.95),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_sample_covers_by_enumeration(
    counts: list[int], chances: list[float], caps: list[int], confidence: float
) -> None:
    y = np.array(counts, np.int64)
    p, cap = np.array(chances[: len(y)]), np.array(caps[: len(y)], np.float64)
    low = high = 0.0
    for chosen in itertools.product([False, True], repeat=len(y)):
        audited = np.array(chosen)
        chance = float(np.where(audited, p, 1 - p).prod())
        sample = Sample.of(p, np.flatnonzero(audited), y[audited], cap)
        missed = int(y[~audited].sum())
        low += chance * (missed < sample.missed_lower(confidence))
        high += chance * (missed > sample.missed_upper(confidence))
    assert max(low, high) <= 1 - confidence + 1e-9


@pytest.mark.parametrize(("p", "cap"), [(0.01, 1), (0.05, 4), (0.3, 3)])
def test_sample_without_finds_is_exact(p: float, cap: int) -> None:
    sample = Sample.of(np.full(5000, p), np.arange(50), np.zeros(50, np.int64), cap)
    # One block more, full, and the chance to miss them all is 5 % at most.
    blocks = math.ceil(math.log(0.05) / math.log(1 - p))
    assert sample.missed_upper(0.95) == blocks * cap - 1
    assert (sample.missed, sample.missed_lower(0.95)) == (0, 0)


@pytest.mark.parametrize("found", [1, 5, 30, 200])
def test_sample_lies_between_the_exact_bound_and_that_of_chernoff(found: int) -> None:
    p, blocks = 0.05, 20_000
    audited = np.arange(1000)
    sample = Sample.of(np.full(blocks, p), audited, (audited < found).astype(np.int64), 1)
    exact = next(t for t in itertools.count(found) if binom.cdf(found, t, p) <= 0.05) - 1
    totals = np.arange(found / p, 40 * (found / p + 10))
    share = found / totals
    chernoff = totals * (share * np.log(share / p) + (1 - share) * np.log((1 - share) / (1 - p)))
    loose = totals[np.flatnonzero(chernoff < math.log(20))[-1]]
    assert exact <= sample.missed_upper() + found <= loose
    assert sample.missed_upper() + found < 1.25 * exact + 3
    few = next(t for t in itertools.count(found) if binom.sf(found - 1, t, p) > 0.05)
    assert 0.75 * few - 3 < sample.missed_lower() + found <= few
    assert sample.missed == pytest.approx(found / p - found)


def test_pooled_sample_is_that_of_all_blocks_and_closer_than_its_parts() -> None:
    rng = np.random.default_rng(7)
    y, p = (rng.random(4000) < 0.02).astype(np.int64), rng.uniform(0.05, 0.1, 4000)
    audited = np.flatnonzero(rng.random(4000) < p)
    whole = Sample.of(p, audited, y[audited], 2)
    parts = []
    for k in range(4):
        mine = audited[audited // 1000 == k]
        parts.append(Sample.of(p[k * 1000 : (k + 1) * 1000], mine - k * 1000, y[mine], 2))
    together = pool([*parts, Sample()])
    assert together.total == pytest.approx(whole.total)
    for name in ("blocks", "audited", "found", "room", "jump", "least_cap", "cap"):
        assert getattr(together, name) == getattr(whole, name)
    assert together.missed_upper() == whole.missed_upper() < 0.7 * sum(s.missed_upper() for s in parts)
    assert (pool([]), pool([]).missed_upper(), pool([]).missed_interval()) == (Sample(), 0, (0, 0))


def test_blocks_audited_for_sure_are_no_part_of_the_chance() -> None:
    sample = Sample.of([1.0, 0.5, 1.0, 0.5], [0, 1, 2], [5, 1, 0], 5)
    assert (sample.blocks, sample.audited, sample.found, sample.total, sample.room) == (2, 1, 1, 2.0, 5)
    assert sample.missed_upper(0.999) == 5
    assert Sample.of([1.0, 1.0], [0, 1], [2, 3], 5).missed_upper() == 0
    assert Sample.of(np.full(9, 0.5), [3], [5], 2).cap == 8


def test_probabilities_of_inclusion() -> None:
    weights = np.array([100.0, 1, 2, 3, 50])
    p = inclusion(weights, 3)
    assert p.sum() == pytest.approx(3)
    assert (p <= 1).all()
    assert p[2] / p[1] == pytest.approx(2)
    np.testing.assert_array_equal(inclusion(weights, 5), np.ones(5))
    with pytest.raises(ValueError, match="up to the 5 blocks"):
        inclusion(weights, 6)
    with pytest.raises(ValueError, match="expected probabilities above 0"):
        Sample.of([0.5, 0.0], [0], [1], 1)


def test_recall_and_what_may_be_missed() -> None:
    assert recall_interval(95, (0, 5)) == (0.95, 1.0)
    assert recall_interval(0, (0, 0)) == (1.0, 1.0)
    assert recall_interval(0, (0, 3)) == (0.0, 1.0)
    assert recall_interval(0, (1, 3)) == (0.0, 0.0)
    assert allowed_misses(19, 0.95) == 1
    assert allowed_misses(18, 0.95) == 0
    assert allowed_misses(2428, 0.95) == 127
    # Ten objects allow no miss: one more may be anywhere.
    assert least_share(10, 0.95, 4) == pytest.approx(0.95)
    share = least_share(2428, 0.95, 1)
    sample = Sample.of(np.full(8000, share + 1e-9), np.arange(10), np.zeros(10, np.int64), 1)
    assert sample.missed_upper() == 127


def times_below(confidence: float, runs: int, cap: int, holds: int) -> int:
    """How often a bound is below the truth when one stops at the first moment at which it is."""
    y = np.zeros(120, np.int64)
    y[:24] = holds
    below = 0
    for seed in range(runs):
        bound = MissBound(np.zeros(120), cap, target=int(y.sum()) - 1, confidence=confidence, seed=seed)
        while bound.unknown and bound.upper >= y.sum():
            index = bound.draw(4)
            bound.see(index, y[index])
        below += bound.upper < y.sum()
    return below


def test_a_bound_is_below_the_truth_no_more_often_than_stated() -> None:
    """Rejects what is less sure than stated, and is not empty: with a cap too small it is."""
    runs = 150
    false = times_below(0.7, runs, 1, 1)
    assert binomtest(false, runs, 0.3, alternative="greater").pvalue > 0.05
    assert binomtest(false, runs, 0.08, alternative="less").pvalue > 1e-3  # a bound near what it may be, not idle
