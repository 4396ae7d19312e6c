"""k-means, and merging of small clusters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

_RESTARTS, _ROUNDS = 8, 100
_CHUNK = 65_536
# Centres are fitted to at most this many items; more do not change them noticeably.
_MOST = 16_384


def kmeans(vectors: NDArray[np.float32], count: int, *, seed: int) -> NDArray[np.float32]:
    """Cluster centres by Lloyd's algorithm from k-means++ starts, the best of 8 restarts.

    Parameters
    ----------
    vectors : ndarray, float32, (n, d)
    count : int
        Largest number of clusters; fewer if there are fewer distinct items.
    seed : int

    Returns
    -------
    ndarray, float32, (k, d)
    """
    rng = np.random.default_rng(seed)
    vectors = vectors if len(vectors) <= _MOST else vectors[np.sort(rng.permutation(len(vectors))[:_MOST])]
    best, least = vectors[:0], np.inf
    for _ in range(_RESTARTS):
        centres = _lloyd(vectors, _spread(vectors, count, rng))
        inertia = float(nearest(vectors, centres)[1].sum(dtype=np.float64))
        if inertia < least:
            best, least = centres, inertia
    return best


def merged(vectors: NDArray[np.float32], centres: NDArray[np.float32], smallest: int) -> NDArray[np.float32]:
    """Centres after dissolving clusters with too few items, the smallest first.

    Parameters
    ----------
    vectors : ndarray, float32, (n, d)
    centres : ndarray, float32, (k, d)
    smallest : int
        Fewest items of a cluster.
    """
    while len(centres) > 1:
        sizes = np.bincount(nearest(vectors, centres)[0], minlength=len(centres))
        if sizes.min() >= smallest:
            break
        centres = _lloyd(vectors, np.delete(centres, sizes.argmin(), axis=0))
    return centres


def nearest(vectors: NDArray[np.float32], centres: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The nearest centre of each item, and the square of its distance.

    Parameters
    ----------
    vectors : ndarray, float32, (n, d)
    centres : ndarray, float32, (k, d)
    """
    index, squared = np.empty(len(vectors), np.intp), np.empty(len(vectors), np.float32)
    middle = centres.mean(axis=0)  # centring reduces cancellation in the products
    near = centres - middle
    for start in range(0, len(vectors), _CHUNK):
        rows = slice(start, start + _CHUNK)
        x = vectors[rows] - middle
        distance = (near**2).sum(axis=1) - 2 * x @ near.T
        index[rows] = distance.argmin(axis=1)
        squared[rows] = ((x - near[index[rows]]) ** 2).sum(axis=1)
    return index, squared


def _spread(vectors: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Distinct items far from each other (k-means++, Arthur and Vassilvitskii 2007)."""
    chosen = [int(rng.integers(len(vectors)))]
    squared = np.full(len(vectors), np.inf)
    while True:
        squared = np.minimum(squared, ((vectors - vectors[chosen[-1]]) ** 2).sum(axis=1))
        total = squared.sum()
        if len(chosen) == count or not total:
            return vectors[chosen]
        chosen.append(int(rng.choice(len(vectors), p=squared / total)))


def _lloyd(vectors: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Move centres to the middle of their items until no item changes its cluster; empty clusters vanish."""
    before, wide = np.empty(0, np.intp), vectors.astype(np.float64)
    for _ in range(_ROUNDS):
        index, _ = nearest(vectors, centres)
        if np.array_equal(index, before):
            break
        _, before, sizes = np.unique(index, return_inverse=True, return_counts=True)
        # Sums in the order of the items, so that the result does not depend on the number of threads.
        members = csr_array((np.ones(len(before)), before, np.arange(len(before) + 1)))
        centres = (members.T @ wide / sizes[:, None]).astype(np.float32)
    return centres
