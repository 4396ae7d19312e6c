"""Calibration of the base's activations to the probability that refining a cell finds something.

No gradients are used: the weight of each high-level feature follows in closed form from means and covariances of the
activations (`linear_discriminant`), and the weighted sum is mapped to a probability by counting on held-out cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from torch import Tensor

FIRED = 3


Rule = Literal["discriminant", "logit", "log-lift", "noisy-or"]
RULES: tuple[Rule, ...] = get_args(Rule)

# Bin edges at quantiles 1 - 2^(-j/2): one bin for each half-octave of the tail, where cells are chosen.
_QUANTILES = 1.0 - 2.0 ** (-np.arange(1, 29) / 2.0)
_FEATURES = 16
NO_FEATURE = 255
_PSEUDO_CELLS = 4.0
# Share of each variance that is added to it; and finds for each feature, below which weights are chance.
_SHRINKAGE, _LEAST_FINDS = 0.3, 5
# The features choose unless they need more than so many times the area of the base's own logit.
_MOST_AREA = 1.1
_FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class Curve:
    """A monotone map from an activation to a precision, constant within bins.

    Parameters
    ----------
    edges : ndarray, float32, (b - 1,)
        Increasing bin edges.
    precision : ndarray, float32, (b,)
        Share of cells in each bin that hold something, not decreasing.
    """

    edges: NDArray[np.float32]
    precision: NDArray[np.float32]

    def __post_init__(self) -> None:
        edges, precision = self.edges, self.precision
        if edges.ndim != 1 or precision.shape != (len(edges) + 1,) or {edges.dtype, precision.dtype} != {_FLOAT}:
            raise ValueError(f"expected n - 1 edges and n precisions, got {edges.shape} and {precision.shape}")
        if not (np.diff(edges) >= 0).all() or not ((precision >= 0) & (precision <= 1)).all():
            raise ValueError("expected increasing edges of activations, and precisions from 0 to 1")

    @classmethod
    def fit(cls, values: NDArray[np.float32], targets: NDArray[np.float32]) -> Curve:
        """Count the precision of each bin, shrunk to the prior, and make it monotone.

        Parameters
        ----------
        values, targets : ndarray, float32, (n,)
            Activation of each cell, and the probability that it holds something.
        """
        edges = np.unique(np.quantile(values, _QUANTILES).astype(np.float32))
        bins = np.searchsorted(edges, values, side="left")
        count = np.bincount(bins, minlength=len(edges) + 1).astype(np.float64)
        hits = np.bincount(bins, weights=targets, minlength=len(edges) + 1)
        prior = float(targets.mean())
        precision = (hits + _PSEUDO_CELLS * prior) / (count + _PSEUDO_CELLS)
        monotone = isotonic_regression(precision, weights=count + _PSEUDO_CELLS).x
        return cls(edges, monotone.astype(np.float32))

    def __call__(self, values: Tensor) -> Tensor:
        """Precision of each activation, for any shape."""
        edges = torch.from_numpy(self.edges).to(values.device)
        return torch.from_numpy(self.precision).to(values.device)[torch.bucketize(values.float().contiguous(), edges)]


@dataclass(frozen=True)
class Firing:
    """The rule that maps a cell's activations to the probability that refining it finds something.

    Parameters
    ----------
    rule : {"discriminant", "logit", "log-lift", "noisy-or"}
        Where the weights of the features come from: `linear_discriminant`, or the training of the base. Some models of
        version 0.1 add up what `curves` say of each feature instead, by log-lifts or noisy-or.
    prior : float
        Share of calibration cells that hold something.
    features : ndarray, int64, (f,)
        High-level features in use, the most informative first.
    curves : tuple of Curve
        Precision curve of each of them.
    raw_knots, probability_knots : ndarray, float32, (m,)
        Monotone map from the weighted sum to a probability, linear between knots so that ranks are kept.
    """

    rule: Rule
    prior: float
    features: NDArray[np.int64]
    curves: tuple[Curve, ...]
    raw_knots: NDArray[np.float32]
    probability_knots: NDArray[np.float32]

    def __post_init__(self) -> None:
        knots, values, features = self.raw_knots, self.probability_knots, self.features
        if self.rule not in RULES or not 0 < self.prior < 1:
            raise ValueError(f"expected one of the rules {RULES} and a prior, got {self.rule!r:.60} and {self.prior}")
        if features.dtype != np.int64 or features.shape != (len(self.curves),):
            raise ValueError(f"expected a feature for each of {len(self.curves)} curves, got {features.shape}")
        if not ((features >= 0) & (features < NO_FEATURE)).all():
            raise ValueError(f"expected features from 0 to {NO_FEATURE - 1}, got {features.tolist()}")
        if knots.ndim != 1 or len(knots) < 2 or values.shape != knots.shape or {knots.dtype, values.dtype} != {_FLOAT}:
            raise ValueError(f"expected as many probabilities as knots, got {values.shape} and {knots.shape}")
        if not (np.diff(knots) >= 0).all() or not knots[0] < knots[1] or not ((values >= 0) & (values <= 1)).all():
            raise ValueError("expected increasing knots, and probabilities from 0 to 1")

    def probability(self, high: Tensor, logit: Tensor) -> Tensor:
        """Probability that a refinement would find something, for each cell.

        Parameters
        ----------
        high : Tensor, float, (n, c, h, w)
            High-level activations of the base.
        logit : Tensor, float, (n, 1, h, w)
            Weighted sum of the high-level activations.

        Returns
        -------
        Tensor, float32, (n, h, w)
        """
        if self.rule in ("log-lift", "noisy-or"):
            return self._calibrated(self._counted(high))
        if logit.dtype == torch.bfloat16:
            table = self._by_bits.to(logit.device)
            return table[logit[:, 0].contiguous().view(torch.int16).long() + 2**15]
        return self._calibrated(logit[:, 0].float())

    def strongest(self, high: Tensor, count: int = 3) -> Tensor:
        """The features that fire in each cell, the largest precision first.

        A feature fires if its precision is above the prior: if it makes a find likelier.

        Parameters
        ----------
        high : Tensor, float, (n, c)
            Activations, a row for each cell.
        count : int
            Number of features.

        Returns
        -------
        Tensor, uint8, (n, count)
            Indices of high-level features, the largest lift over the prior first; 255 if no more fire.
        """
        lifts = torch.stack([c(high[:, f]) for f, c in zip(self.features.tolist(), self.curves, strict=True)], dim=1)
        top = lifts.topk(min(count, lifts.shape[1]), dim=1)
        names = torch.from_numpy(self.features.astype(np.uint8))[top.indices.cpu()]
        return names.masked_fill(top.values.cpu() <= self.prior, NO_FEATURE)

    def _counted(self, high: Tensor) -> Tensor:
        """Sum over the features of what their precision says, (n, h, w)."""
        total = torch.zeros(high[:, 0].shape, device=high.device)
        for feature, curve in zip(self.features.tolist(), self.curves, strict=True):
            precision = curve(high[:, feature])
            if self.rule == "log-lift":
                total += torch.log(precision / (1 - precision)) - np.log(self.prior / (1 - self.prior))
            else:
                total -= torch.log1p(-precision)
        return total

    @cached_property
    def _by_bits(self) -> Tensor:
        """Table of the probability of each bfloat16 logit, indexed by its bits; takes a fifth of the time."""
        return self._calibrated(torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16).float())

    def _calibrated(self, raw: Tensor) -> Tensor:
        if raw.device.type == "cpu":  # in one pass: takes a third of the time
            with np.errstate(invalid="ignore"):
                found = np.interp(raw.numpy(), self.raw_knots, self.probability_knots)
            return torch.from_numpy(found.astype(np.float32))
        knots = torch.from_numpy(self.raw_knots).to(raw.device)
        values = torch.from_numpy(self.probability_knots).to(raw.device)
        upper = torch.bucketize(raw.contiguous(), knots).clamp_(1, len(knots) - 1)
        x0, x1 = knots[upper - 1], knots[upper]
        share = ((raw - x0) / (x1 - x0)).clamp_(0.0, 1.0)
        return values[upper - 1] + share * (values[upper] - values[upper - 1])


class Discriminant(NamedTuple):
    """A weighted sum of activations.

    Parameters
    ----------
    weights : ndarray, float32, (c,)
    bias : float
    """

    weights: NDArray[np.float32]
    bias: float

    def __call__(self, high: NDArray[np.float32]) -> NDArray[np.float32]:
        """The sum for each row of activations (n, c)."""
        return (high @ self.weights + np.float32(self.bias)).astype(np.float32)


def linear_discriminant(high: NDArray[np.float32], targets: NDArray[np.float32]) -> Discriminant | None:
    """Weights of features that tell cells that hold something from others, in closed form.

    The linear discriminant of Fisher (1936), with the mean of both covariances, shrunk towards its diagonal.

    Parameters
    ----------
    high : ndarray, float32, (n, c)
        Activations of cells that calibrate nothing else.
    targets : ndarray, float32, (n,)
        Probability that a cell holds something.

    Returns
    -------
    Discriminant or None
        Its sum is a log-odds if activations are normal. None if either kind of cells is too rare: below five for each
        feature.
    """
    rows, share = high.astype(np.float64), targets.astype(np.float64)
    if min(share.sum(), (1 - share).sum()) < _LEAST_FINDS * high.shape[1]:
        return None
    moments = [_moments(rows, each / each.sum()) for each in (share, 1 - share)]
    (there, cov_there), (absent, cov_absent) = moments
    covariance = (cov_there + cov_absent) / 2
    variance = np.diag(covariance)
    covariance += np.diag(_SHRINKAGE * variance + 1e-6 * variance.max() + 1e-12)
    weights = np.linalg.solve(covariance, there - absent)
    prior = float(share.mean())
    bias = np.log(prior / (1 - prior)) - weights @ (there + absent) / 2
    return Discriminant(weights.astype(np.float32), float(bias))


def _moments(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Weighted mean and covariance."""
    mean = weights @ rows
    spread = rows - mean
    return mean, (spread * weights[:, None]).T @ spread


def features_choose(
    found: Discriminant, high: NDArray[np.float32], logit: NDArray[np.float32], targets: NDArray[np.float32]
) -> tuple[bool, dict[Rule, float]]:
    """Whether the discriminant needs at most a tenth more area than the base's own logit on cells that it has not seen.

    Parameters
    ----------
    found : Discriminant
    high : ndarray, float32, (n, c)
        High-level activations of held-out cells.
    logit : ndarray, float32, (n,)
        Logits of the base for these cells.
    targets : ndarray, float32, (n,)
        Probability that the refine net finds something in them.

    Returns
    -------
    bool
    dict of str to float
        Share of the cells that each rule needs to hold 95 % of the targets.
    """
    areas: dict[Rule, float] = {
        "discriminant": area_for_recall(found(high), targets, 0.95),
        "logit": area_for_recall(logit, targets, 0.95),
    }
    return areas["discriminant"] <= _MOST_AREA * areas["logit"], areas


def calibrate_firing(
    high: NDArray[np.float32],
    logit: NDArray[np.float32],
    targets: NDArray[np.float32],
    rule: Rule = "logit",
) -> Firing:
    """Calibrate every feature, and their weighted sum, on held-out cells.

    Parameters
    ----------
    high : ndarray, float32, (n, c)
        High-level activations of the calibration cells.
    logit : ndarray, float32, (n,)
        Weighted sums of these cells.
    targets : ndarray, float32, (n,)
        Probability that the refine net finds something in them.
    rule : {"discriminant", "logit"}
        Where the weights come from.
    """
    prior = float(np.clip(targets.mean(), 1e-6, 0.5))
    curves = [Curve.fit(high[:, f], targets) for f in range(high.shape[1])]
    gain = [_information(c, high[:, f], prior) for f, c in enumerate(curves)]
    order = np.argsort(gain)[::-1][:_FEATURES].astype(np.int64)
    knots, values = _knots(logit, targets)
    return Firing(rule, prior, order, tuple(curves[f] for f in order), knots, values)


def area_for_recall(scores: NDArray[np.float32], targets: NDArray[np.float32], recall: float) -> float:
    """Share of cells, in order of falling score, that holds `recall` of all targets."""
    order = np.argsort(-scores, kind="stable")
    held = np.cumsum(targets[order], dtype=np.float64)
    return float(np.searchsorted(held, recall * held[-1]) + 1) / len(scores)


def _information(curve: Curve, values: NDArray[np.float32], prior: float) -> float:
    """Mutual information of a binned feature and whether the cell holds something, in nats."""
    p = curve(torch.from_numpy(values)).numpy().astype(np.float64).clip(1e-9, 1 - 1e-9)
    return float(np.mean(p * np.log(p / prior) + (1 - p) * np.log((1 - p) / (1 - prior))))


def _knots(raw: NDArray[np.float32], targets: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Knots of a strictly increasing map from raw scores to probabilities."""
    curve = Curve.fit(raw, targets)
    bins = np.searchsorted(curve.edges, raw, side="left")
    count = np.bincount(bins, minlength=len(curve.precision))
    mean = np.bincount(bins, weights=raw, minlength=len(curve.precision))[count > 0] / count[count > 0]
    # A knot for each bin, at the mean of its scores, and one far beyond either end, for scores of other images.
    low, high = float(raw.min()), float(raw.max())
    ends = low - (high - low) - 1, high + (high - low) + 1
    knots = np.concatenate([[ends[0]], mean, [ends[1]]]).astype(np.float32)
    precision = curve.precision[count > 0]
    values = np.concatenate([precision[:1], precision, precision[-1:]])
    # A slight slope keeps the ranks of cells that share a bin's precision.
    ramp = np.linspace(0, 1e-4 * max(float(values[-1]), 1e-6), len(knots))
    return knots, (values + ramp).clip(0, 1).astype(np.float32)


def feature_name(feature: int) -> str:
    """Name of a high-level feature of the base in results."""
    return f"feature {feature}"
