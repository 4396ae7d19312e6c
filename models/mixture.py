"""Rarity of feature vectors within one image, without labels and positions.

Feature vectors are clustered into kinds by k-means; each kind is modelled by a Gaussian with a shrunk covariance. PaDiM
(Defard et al. 2021, arXiv:2011.08785) does so for each position; here kinds replace positions.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor

_SHRINK = 0.2
_CHUNK = 65_536
# Number of prior rows, at the mean of all kinds, added to each kind, and the least variance of any measure.
_LEAN, _LEAST = 5.0, 1e-6


@dataclass(frozen=True)
class Mixture:
    """Gaussian kinds of feature vectors.

    Parameters
    ----------
    means : Tensor, float32, (k, d)
    whiten : Tensor, float32, (k, d, d)
        Maps a difference from the mean to independent units.
    offsets : Tensor, float32, (k,)
        Logarithm of each kind's share and normalisation.
    """

    means: Tensor
    whiten: Tensor
    offsets: Tensor

    @classmethod
    def fit(cls, x: NDArray[np.float32], kinds: int, seed: int) -> Mixture:
        """Cluster rows into kinds and fit a Gaussian to each.

        Parameters
        ----------
        x : ndarray, float32, (n, d)
        kinds : int
            Largest number of kinds; fewer if there are too few rows.
        seed : int
        """
        x = x.astype(np.float64)
        scale = x.std(axis=0) + 1e-6
        kinds = max(1, min(kinds, len(x) // (2 * x.shape[1])))
        with np.errstate(all="ignore"), warnings.catch_warnings():
            # Fewer kinds than requested are valid: a blank image has one.
            warnings.simplefilter("ignore", UserWarning)
            _, group = (
                kmeans2(x / scale, kinds, minit="++", seed=seed, missing="warn")
                if kinds > 1
                else (0, np.zeros(len(x), int))
            )
        pooled = np.atleast_2d(np.cov(x, rowvar=False)) if len(x) > 1 else np.eye(x.shape[1])
        pooled = pooled + np.eye(len(pooled)) * (1e-4 * np.trace(pooled) / len(pooled) + 1e-8)
        rows = []
        for k in np.unique(group).tolist():
            mine = x[group == k]
            spread = np.cov(mine, rowvar=False) if len(mine) > x.shape[1] else pooled
            spread = (1 - _SHRINK) * spread + _SHRINK * pooled
            inverse_root = np.linalg.inv(np.linalg.cholesky(spread))
            log_share = np.log(len(mine) / len(x))
            rows.append((mine.mean(axis=0), inverse_root, log_share + np.log(np.diag(inverse_root)).sum()))
        means, whiten, offsets = (torch.from_numpy(np.stack(c).astype(np.float32)) for c in zip(*rows, strict=True))
        return cls(means, whiten, offsets)

    @classmethod
    def of_kinds(cls, x: NDArray[np.float32], kind: NDArray[np.integer], kinds: int) -> Mixture:
        """Fit a Gaussian to each of given kinds; those with few rows are shrunk toward all rows.

        Parameters
        ----------
        x : ndarray, float32, (n, d)
        kind : ndarray, int, (n,)
            Kind of each row, below `kinds`.
        kinds : int
        """
        x = x.astype(np.float64)
        count = np.bincount(kind, minlength=kinds)[:, None]
        totals = np.zeros((kinds, x.shape[1]))
        np.add.at(totals, kind, x)
        means = (totals + _LEAN * x.mean(axis=0)) / (count + _LEAN)
        spread = [np.zeros((x.shape[1],) * 2) for _ in range(kinds)]
        for k in range(kinds):
            apart = x[kind == k] - means[k]
            spread[k] = apart.T @ apart
        pooled = sum(spread) / max(len(x), 1) + _LEAST * np.eye(x.shape[1])
        weight = 2.0 * x.shape[1]
        roots = [
            np.linalg.inv(np.linalg.cholesky((own + weight * pooled) / (int(n) + weight)))
            for own, n in zip(spread, count[:, 0], strict=True)
        ]
        offsets = np.array([np.log(np.diag(root)).sum() for root in roots])
        whiten = np.stack(roots).astype(np.float32)
        return cls(*(torch.from_numpy(a.astype(np.float32)) for a in (means, whiten, offsets)))

    def within(self, x: Tensor, kind: Tensor) -> Tensor:
        """Negative log-likelihood of each row within its kind, up to a constant.

        Parameters
        ----------
        x : Tensor, float, (n, d)
        kind : Tensor, int64, (n,)

        Returns
        -------
        Tensor, float32, (n,)
        """
        tables = [t.to(x.device) for t in (self.means, self.whiten, self.offsets)]
        found = []
        for rows, own in zip(torch.split(x.float(), _CHUNK), torch.split(kind, _CHUNK), strict=True):
            means, whiten, offsets = (table[own] for table in tables)
            apart = (whiten * (rows - means)[:, None]).sum(dim=2)
            found.append(0.5 * apart.square().sum(dim=1) - offsets)
        return torch.cat(found)

    def surprise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood (up to a constant) and the likeliest kind of each row.

        Parameters
        ----------
        x : Tensor, float, (n, d)

        Returns
        -------
        surprise : Tensor, float32, (n,)
        kind : Tensor, int64, (n,)
        """
        means, whiten, offsets = (t.to(x.device) for t in (self.means, self.whiten, self.offsets))
        values, kinds = [], []
        for rows in torch.split(x.float(), _CHUNK):
            logs = []
            for mean, root, offset in zip(means, whiten, offsets, strict=True):
                logs.append(offset - 0.5 * ((rows - mean) @ root.T).square().sum(dim=1))
            table = torch.stack(logs, dim=1)
            values.append(-torch.logsumexp(table, dim=1))
            kinds.append(table.argmax(dim=1))
        return torch.cat(values), torch.cat(kinds)


def ridge(x: NDArray[np.float32], y: NDArray[np.float32], strength: float = 1.0) -> NDArray[np.float32]:
    """Weights of a regularised linear regression with an intercept (the last row).

    Parameters
    ----------
    x : ndarray, float32, (n, d)
    y : ndarray, float32, (n, m)
    strength : float
        Penalty, relative to one observation of unit variance.

    Returns
    -------
    ndarray, float32, (d + 1, m)
    """
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    z = ((x - mean) / scale).astype(np.float64)
    centred = y - y.mean(axis=0)
    w = np.linalg.solve(z.T @ z + strength * np.eye(z.shape[1]), z.T @ centred) / scale[:, None]
    return np.vstack([w, y.mean(axis=0) - mean @ w]).astype(np.float32)
