"""Decoding of raw outputs of detectors and classifiers, for files that hold a net alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.experts.errors import ExpertError

Floats = NDArray[np.float32]
_BOX = 4


def decode_yolo(output: Floats, side: int, confidence: float, iou: float, most: int) -> list[Floats]:
    """Objects of tiles from centres, sizes and the scores of each class, with suppression within classes.

    Parameters
    ----------
    output : ndarray, float32, (n, 4 + k, m) or (n, m, 4 + k)
        For each of m anchors x and y of the centre, width, height in pixels of the tile, and k scores in 0..1. The
        shorter axis is taken as 4 + k.
    side : int
        Side of a tile; boxes are clipped to it.
    confidence : float
        Least score.
    iou : float
        Above which the lower of two boxes of one class is dropped.
    most : int
        Most objects in a tile.

    Returns
    -------
    list of ndarray, float32, (objects, 6)
        x0, y0, x1, y1, score and class for each tile, best first.

    Raises
    ------
    ExpertError
        If the output has another shape.
    """
    if output.ndim != 3 or min(output.shape[1:]) <= _BOX:
        raise ExpertError(f'decode="yolo" expects an output (n, 4 + classes, anchors), got {output.shape}')
    columns = output if output.shape[1] < output.shape[2] else output.transpose(0, 2, 1)
    return [_suppressed(each.T, side, confidence, iou, most) for each in columns]


def _suppressed(rows: Floats, side: int, confidence: float, iou: float, most: int) -> Floats:
    scores, labels = rows[:, _BOX:].max(axis=1), rows[:, _BOX:].argmax(axis=1)
    chosen = scores > confidence
    rows, scores, labels = rows[chosen], scores[chosen], labels[chosen]
    if not len(rows):
        return np.zeros((0, 6), np.float32)
    corner, size = rows[:, :2] - rows[:, 2:_BOX] / 2, rows[:, 2:_BOX]
    found = cv2.dnn.NMSBoxesBatched(
        np.concatenate([corner, size], axis=1).tolist(), scores.tolist(), labels.tolist(), confidence, iou
    )
    kept = np.asarray(found, np.int64).reshape(-1)
    kept = kept[np.argsort(-scores[kept], kind="stable")][:most]
    boxes = np.concatenate([corner[kept], corner[kept] + size[kept]], axis=1).clip(0, side)
    table: Floats = np.column_stack([boxes, scores[kept], labels[kept]]).astype(np.float32)
    return table


def decode_rows(output: Floats, confidence: float) -> list[Floats]:
    """Objects of tiles from (n, m, 6): x0, y0, x1, y1, score and class; rows below the least score are padding."""
    if output.ndim != 3 or output.shape[2] != 6:
        raise ExpertError(f'decode="rows" expects an output (n, m, 6), got {output.shape}')
    return [each[each[:, _BOX] >= confidence] for each in output]


def decode_named(outputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Objects of tiles from outputs named boxes, scores and labels: those of one tile, or of a batch."""
    if np.ndim(outputs["boxes"]) == 2:
        return [dict(outputs)]
    return [{name: values[i] for name, values in outputs.items()} for i in range(len(outputs["boxes"]))]


def probabilities(logits: Floats, activation: str) -> Floats:
    """Probabilities (n, k, ...) of logits; with "softmax" those of class 0, the background, are left out."""
    if activation == "sigmoid":
        even: Floats = (1 / (1 + np.exp(-logits.clip(-80, 80)))).astype(np.float32)
        return even
    if activation == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: Floats = (powers / powers.sum(axis=1, keepdims=True))[:, 1:].astype(np.float32)
        return found
    return logits
