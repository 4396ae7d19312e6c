"""Meaning of the refine net's last stage: a class and a box for each cell.

Channels are one logit a class, then the offset of the object's centre from the cell's centre (y, x; in cells) and the
logarithm of its size (height, width; in cells), as in CenterNet (Zhou et al. 2019, arXiv:1904.07850).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .candidates import Candidates
from .runtime import in_double

BOX_CHANNELS = 4
_BOX_WEIGHT = 1.0


def read_detections(out: Tensor, corners: NDArray[np.int64], floor: float) -> Candidates:
    """Candidates of a batch of windows.

    Parameters
    ----------
    out : Tensor, float, (n, classes + 4, h, w)
        Output of the refine net.
    corners : ndarray, int64, (n, 2)
        Fine-grid index of each window's first cell.
    floor : float
        Probability below which a cell is not kept.
    """
    out = out.float()
    logits, labels = out[:, :-BOX_CHANNELS].max(dim=1)
    scores = in_double(torch.sigmoid, logits)
    n, y, x = torch.nonzero(scores >= floor, as_tuple=True)
    box = out[n, -BOX_CHANNELS:, y, x].cpu().numpy()
    rows = n.cpu().numpy()
    cells = np.stack([corners[rows, 0] + y.cpu().numpy(), corners[rows, 1] + x.cpu().numpy()], axis=1)
    centre = cells + 0.5 + box[:, :2]
    half = np.exp(box[:, 2:].clip(-4, 6)) / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)
    return Candidates(
        cells.astype(np.int32),
        scores[n, y, x].cpu().numpy(),
        labels[n, y, x].cpu().numpy().astype(np.int16),
        boxes,
        np.zeros(len(cells), np.int32),
    )


def detection_loss(out: Tensor, classes: Tensor, valid: Tensor, boxes: Tensor, boxed: Tensor) -> Tensor:
    """Binary cross-entropy of the classes and smooth L1 of the boxes, per object cell.

    Parameters
    ----------
    out : Tensor, float, (n, k + 4, h, w)
    classes : Tensor, float, (n, k, h, w)
        1 in cells of a class.
    valid : Tensor, float, (n, k, h, w)
        0 in cells that do not count for a class: near misses and ignored areas.
    boxes : Tensor, float, (n, 4, h, w)
        Target offsets and log sizes.
    boxed : Tensor, float, (n, h, w)
        1 in cells that have a box.
    """
    logits = out[:, :-BOX_CHANNELS].float()
    entropy = functional.binary_cross_entropy_with_logits(logits, classes, reduction="none") * valid
    error = functional.smooth_l1_loss(out[:, -BOX_CHANNELS:].float(), boxes, reduction="none", beta=0.2).mean(dim=1)
    positives = classes.sum().clamp(min=1.0)
    return entropy.sum() / positives + _BOX_WEIGHT * (error * boxed).sum() / boxed.sum().clamp(min=1.0)
