"""Reading of experts' answers: boxes, maps, classes and vectors in the forms that common libraries return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.experts.errors import ExpertError
from coarse2fine.experts.forms import is_one_answer, parts_of

Floats = NDArray[np.float32]
_MASKED = 0.5
_FORMS = (
    "expected for each tile a mapping or an object with boxes (m, 4) as x0, y0, x1, y1 in pixels of the tile, "
    "scores (m,) and labels (m,), or an array (m, 6) of these"
)


@dataclass(frozen=True)
class Boxes:
    """Objects in one tile.

    Parameters
    ----------
    xyxy : ndarray, float32, (m, 4)
        x0, y0, x1, y1 in pixels of the tile as it was read, context included.
    scores : ndarray, float32, (m,)
    labels : ndarray, int64, (m,)
        Indices of classes.
    outlines : tuple of (ndarray, float32, (k, 2)) or None
        Corners (x, y) of each object's polygon in the same pixels; None if only boxes are known.
    """

    xyxy: Floats
    scores: Floats
    labels: NDArray[np.int64]
    outlines: tuple[Floats, ...] | None = None

    def __len__(self) -> int:
        return len(self.scores)


def read_boxes(answer: Any, count: int, labels: Sequence[str], side: int) -> list[Boxes]:
    """Objects of each tile.

    Parameters
    ----------
    answer : sequence
        For each tile: a mapping or an object with ``boxes`` or ``xyxy``, ``scores`` or ``confidence``, ``labels`` or
        ``class_id``, and perhaps ``masks``, ``mask`` or ``polygons`` (torchvision, transformers, supervision, results
        of Ultralytics); a mapping with ``segmentation`` and ``segments_info`` (transformers); an array (m, 6) of x0,
        y0, x1, y1, score and label; or None. A single tile's answer may come without a list around it.
    count : int
        Number of tiles.
    labels : sequence of str
        Names of the classes; labels may be given by name or by index.
    side : int
        Side of a tile as it was read, in pixels.

    Raises
    ------
    ExpertError
        If the answer has another form, is not finite, names another class, or has boxes outside of the tile.
    """
    if isinstance(answer, Iterator):
        answer = list(answer)
    if is_one_answer(answer):
        answer = [answer]
    if len(answer) != count:
        raise ExpertError(f"the expert returned {len(answer):,} answers for {count:,} tiles; {_FORMS}")
    return [_boxes(each, labels, side) for each in answer]


def read_map(answer: Any, count: int, classes: int, side: int) -> Floats:
    """Probabilities of each class at each pixel of the tiles, float32 (n, k, side, side).

    Parameters
    ----------
    answer : array
        (n, k, h, w), where h and w are `side` or divide it: lower resolutions are interpolated.
    count, classes, side : int
        Numbers of tiles and classes, and side of a tile in pixels with its context.

    Raises
    ------
    ExpertError
        If the array has another shape, or values outside 0..1.
    """
    found = _array(answer, "a map")
    if found.ndim == 3 and classes == 1:
        found = found[:, None]
    shape, wanted = found.shape, f"expected an array ({count}, {classes}, {side}, {side}) of probabilities"
    if found.ndim != 4 or shape[:2] != (count, classes) or shape[2] != shape[3] or not shape[2] or side % shape[2]:
        raise ExpertError(f"the expert returned a map of shape {shape}; {wanted}")
    _check_probabilities(found, wanted)
    if shape[2] == side:
        return found
    flat = [cv2.resize(plane, (side, side), interpolation=cv2.INTER_LINEAR) for plane in found.reshape(-1, *shape[2:])]
    return np.stack(flat).reshape(count, classes, side, side).astype(np.float32)


def read_classes(answer: Any, count: int, classes: int) -> Floats:
    """Probabilities of each class for each tile, float32 (n, k); raises as `read_map` does."""
    found = _array(answer, "classes")
    if found.ndim == 1 and classes == 1:
        found = found[:, None]
    wanted = f"expected an array ({count}, {classes}) of probabilities"
    if found.shape != (count, classes):
        raise ExpertError(f"the expert returned classes of shape {found.shape}; {wanted}")
    _check_probabilities(found, wanted)
    return found


def read_vectors(answer: Any, count: int) -> Floats:
    """A vector for each tile, float32 (n, d); raises as `read_map` does."""
    found = _array(answer, "vectors")
    if found.ndim != 2 or len(found) != count or not np.isfinite(found).all():
        state = "" if np.isfinite(found).all() else " that are not finite"
        raise ExpertError(f"the expert returned vectors of shape {found.shape}{state}; expected ({count}, d)")
    return found


def _check_probabilities(found: Floats, wanted: str) -> None:
    if not np.isfinite(found).all():
        raise ExpertError(f"the expert returned NaN or infinite values; {wanted}")
    low, high = float(found.min(initial=0)), float(found.max(initial=0))
    if low < -1e-3 or high > 1 + 1e-3:
        raise ExpertError(
            f"the expert returned values from {low:.3g} to {high:.3g}; {wanted}, such as the sigmoid or softmax of "
            "logits"
        )


def _array(value: Any, what: str) -> Floats:
    """Any array or tensor as float32."""
    if hasattr(value, "detach"):
        value = value.detach().float().cpu().numpy()
    try:
        found = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ExpertError(
            f"the expert returned {type(value).__name__} for {what}, expected an array ({error})"
        ) from error
    return found


def _boxes(item: Any, labels: Sequence[str], side: int) -> Boxes:
    if item is None or (not isinstance(item, Mapping) and hasattr(item, "__len__") and not len(item)):
        return Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    parts = parts_of(item)
    if parts is None:
        table = _array(item, "boxes")
        if table.ndim != 2 or table.shape[1] not in (5, 6):
            raise ExpertError(f"the expert returned an array of shape {table.shape} for a tile; {_FORMS}")
        parts = {"boxes": table[:, :4], "scores": table[:, 4], "labels": table[:, 5] if table.shape[1] > 5 else None}
    if parts.get("boxes") is None:
        raise ExpertError(f"the expert returned {type(item).__name__} without boxes for a tile; {_FORMS}")
    xyxy = _array(parts["boxes"], "boxes")
    if xyxy.size and (xyxy.ndim != 2 or xyxy.shape[1] != 4):
        raise ExpertError(f"the expert returned boxes of shape {xyxy.shape} for a tile; {_FORMS}")
    xyxy = xyxy.reshape(-1, 4)
    count, given = len(xyxy), parts.get("scores")
    scores = np.ones(count, np.float32) if given is None else _array(given, "scores").reshape(-1)
    classes = _classes(parts.get("labels"), count, labels)
    if not len(scores) == len(classes) == count:
        raise ExpertError(
            f"the expert returned {count} boxes, {len(scores)} scores and {len(classes)} labels; {_FORMS}"
        )
    _check_boxes(xyxy, scores, side)
    return Boxes(xyxy, scores.clip(0, 1), classes, _outlines(parts.get("masks"), parts.get("polygons"), count, side))


def _classes(given: Any, count: int, labels: Sequence[str]) -> NDArray[np.int64]:
    if given is None:
        return np.zeros(count, np.int64)
    given = given if hasattr(given, "detach") else list(np.asarray(given).reshape(-1))
    if len(given) and isinstance(given[0], str):
        known = {name: index for index, name in enumerate(labels)}
        if unknown := [name for name in given if name not in known]:
            raise ExpertError(f"the expert returned the class {str(unknown[0])!r}; its labels are {', '.join(labels)}")
        return np.array([known[name] for name in given], np.int64)
    found = _array(given, "labels").reshape(-1)
    whole = np.nan_to_num(found, nan=-1, posinf=-1, neginf=-1).astype(np.int64)
    if len(whole) and ((whole != found).any() or whole.min() < 0 or whole.max() >= len(labels)):
        raise ExpertError(
            f"the expert returned the class {_strange(found, labels):g}; it has {len(labels)} labels, from 0 to "
            f"{len(labels) - 1}: give labels= a name for each class of the model, the background included if it has a "
            "number"
        )
    return whole


def _strange(found: Floats, labels: Sequence[str]) -> float:
    """The first number that is no index of a label."""
    return float(found[(found != found.round()) | (found < 0) | (found >= len(labels)) | ~np.isfinite(found)][0])


def _check_boxes(xyxy: Floats, scores: Floats, side: int) -> None:
    if not (np.isfinite(xyxy).all() and np.isfinite(scores).all()):
        raise ExpertError("the expert returned boxes or scores that are NaN or infinite")
    if len(xyxy) and (xyxy[:, 2:] < xyxy[:, :2]).any():
        wrong = xyxy[(xyxy[:, 2:] < xyxy[:, :2]).any(axis=1)][0].tolist()
        raise ExpertError(f"the expert returned the box {wrong}; expected x0 <= x1 and y0 <= y1 (corners, not sizes)")
    outside = (xyxy[:, 2:] < -1).any(axis=1) | (xyxy[:, :2] > side + 1).any(axis=1)
    if outside.any():
        raise ExpertError(
            f"the expert returned the box {xyxy[outside][0].tolist()}, which lies outside of its tile of {side} px; "
            "expected pixels of the tile as it was given, context included"
        )
    if len(scores) and (scores.min() < 0 or scores.max() > 1 + 1e-3):
        raise ExpertError(f"the expert returned scores from {scores.min():.3g} to {scores.max():.3g}; expected 0 to 1")


def _outlines(masks: Any, polygons: Any, count: int, side: int) -> tuple[Floats, ...] | None:
    """Polygon of each object, by polygons or by the largest contour of its mask."""
    if polygons is not None:
        found = tuple(_array(each, "a polygon").reshape(-1, 2) for each in polygons)
    elif masks is not None:
        planes = _array(masks, "masks")
        planes = planes[:, 0] if planes.ndim == 4 else planes
        if planes.size and (planes.ndim != 3 or planes.shape[1] != planes.shape[2]):
            raise ExpertError(
                f"the expert returned masks of shape {planes.shape}; expected (m, {side}, {side}), or squares of a "
                "lower resolution of the tile"
            )
        found = tuple(outline_of(plane > _MASKED) * np.float32(side / len(plane)) for plane in planes)
    else:
        return None
    if len(found) != count:
        raise ExpertError(f"the expert returned {len(found)} masks or polygons for {count} boxes")
    if not all(np.isfinite(each).all() for each in found):
        raise ExpertError("the expert returned polygons that are NaN or infinite")
    return found


def outline_of(mask: NDArray[np.bool_]) -> Floats:
    """Corners (k, 2), x and y, of the outer border of a mask's largest part; none if it has fewer than 3."""
    contours = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    if not contours:
        return np.zeros((0, 2), np.float32)
    # Contours run through the centres of pixels.
    largest = max(contours, key=cv2.contourArea)[:, 0].astype(np.float32) + 0.5
    return largest if len(largest) > 2 else np.zeros((0, 2), np.float32)
