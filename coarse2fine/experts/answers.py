"""Reading of experts' answers: boxes, maps, classes and vectors in the forms that common libraries return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from coarse2fine.experts.errors import ExpertError

Floats = NDArray[np.float32]
_BOXES, _SCORES, _LABELS = ("boxes", "xyxy", "bbox"), ("scores", "confidence"), ("labels", "class_id", "classes")
_MASKS, _POLYGONS = ("masks", "mask"), ("polygons", "outlines")
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


def read_boxes(answer: Any, count: int, labels: Sequence[str]) -> list[Boxes]:
    """Objects of each tile.

    Parameters
    ----------
    answer : sequence
        For each tile: a mapping or an object with ``boxes`` or ``xyxy``, ``scores`` or ``confidence``, ``labels`` or
        ``class_id``, and perhaps ``masks``, ``mask`` or ``polygons`` (torchvision, transformers, supervision); or an
        array (m, 6) of x0, y0, x1, y1, score and label; or None.
    count : int
        Number of tiles.
    labels : sequence of str
        Names of the classes; labels may be given by name or by index.

    Raises
    ------
    ExpertError
        If the answer has another form, is not finite, or names another class.
    """
    if isinstance(answer, Mapping) or not hasattr(answer, "__len__"):
        answer = [answer]
    if len(answer) != count:
        raise ExpertError(f"the expert returned {len(answer):,} answers for {count:,} tiles; {_FORMS}")
    return [_boxes(each, labels) for each in answer]


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


def _boxes(item: Any, labels: Sequence[str]) -> Boxes:
    if item is None or (not isinstance(item, Mapping) and hasattr(item, "__len__") and not len(item)):
        return Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    named = _named(item)
    if named is None:
        table = _array(item, "boxes")
        if table.ndim != 2 or table.shape[1] not in (5, 6):
            raise ExpertError(f"the expert returned an array of shape {table.shape} for a tile; {_FORMS}")
        named = {"boxes": table[:, :4], "scores": table[:, 4], "labels": table[:, 5] if table.shape[1] > 5 else None}
    xyxy = _array(named["boxes"], "boxes").reshape(-1, 4)
    count = len(xyxy)
    scores = (
        _array(named["scores"], "scores").reshape(-1) if named["scores"] is not None else np.ones(count, np.float32)
    )
    classes = _classes(named["labels"], count, labels)
    if not len(scores) == len(classes) == count:
        raise ExpertError(
            f"the expert returned {count} boxes, {len(scores)} scores and {len(classes)} labels; {_FORMS}"
        )
    _check_boxes(xyxy, scores)
    return Boxes(xyxy, scores.clip(0, 1), classes, _outlines(named.get("masks"), named.get("polygons"), count))


def _named(item: Any) -> dict[str, Any] | None:
    """The parts of a mapping or an object under the names of this module; None if it is neither."""
    if isinstance(item, Mapping):

        def part(names: Sequence[str]) -> Any:
            return next((item[name] for name in names if item.get(name) is not None), None)
    else:

        def part(names: Sequence[str]) -> Any:
            return next((v for name in names if (v := getattr(item, name, None)) is not None), None)

        if isinstance(item, (np.ndarray, list, tuple)) or hasattr(item, "detach"):
            return None
    boxes = part(_BOXES)
    if boxes is None:
        raise ExpertError(f"the expert returned {type(item).__name__} without boxes for a tile; {_FORMS}")
    return {
        "boxes": boxes,
        "scores": part(_SCORES),
        "labels": part(_LABELS),
        "masks": part(_MASKS),
        "polygons": part(_POLYGONS),
    }


def _classes(given: Any, count: int, labels: Sequence[str]) -> NDArray[np.int64]:
    if given is None:
        return np.zeros(count, np.int64)
    if len(given) and isinstance(given[0], str):
        known = {name: index for index, name in enumerate(labels)}
        if unknown := [name for name in given if name not in known]:
            raise ExpertError(f"the expert returned the class {unknown[0]!r}; its labels are {', '.join(labels)}")
        return np.array([known[name] for name in given], np.int64)
    found = _array(given, "labels").reshape(-1)
    whole = found.astype(np.int64)
    if len(whole) and ((whole != found).any() or whole.min() < 0 or whole.max() >= len(labels)):
        raise ExpertError(
            f"the expert returned the class {found.max():g}; it has {len(labels)} labels, from 0 to {len(labels) - 1}: "
            "give labels= a name for each class of the model, the background included if it has a number"
        )
    return whole


def _check_boxes(xyxy: Floats, scores: Floats) -> None:
    if not (np.isfinite(xyxy).all() and np.isfinite(scores).all()):
        raise ExpertError("the expert returned boxes or scores that are NaN or infinite")
    if len(xyxy) and (xyxy[:, 2:] < xyxy[:, :2]).any():
        wrong = xyxy[(xyxy[:, 2:] < xyxy[:, :2]).any(axis=1)][0].tolist()
        raise ExpertError(f"the expert returned the box {wrong}; expected x0 <= x1 and y0 <= y1 (corners, not sizes)")
    if len(scores) and (scores.min() < 0 or scores.max() > 1 + 1e-3):
        raise ExpertError(f"the expert returned scores from {scores.min():.3g} to {scores.max():.3g}; expected 0 to 1")


def _outlines(masks: Any, polygons: Any, count: int) -> tuple[Floats, ...] | None:
    """Polygon of each object, by polygons or by the largest contour of its mask."""
    if polygons is not None:
        found = tuple(_array(each, "a polygon").reshape(-1, 2) for each in polygons)
    elif masks is not None:
        planes = _array(masks, "masks")
        planes = planes[:, 0] if planes.ndim == 4 else planes
        found = tuple(outline_of(plane > _MASKED) for plane in planes)
    else:
        return None
    if len(found) != count:
        raise ExpertError(f"the expert returned {len(found)} masks or polygons for {count} boxes")
    return found


def outline_of(mask: NDArray[np.bool_]) -> Floats:
    """Corners (k, 2), x and y, of the outer border of a mask's largest part; none if it has fewer than 3."""
    contours = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    if not contours:
        return np.zeros((0, 2), np.float32)
    # Contours run through the centres of pixels.
    largest = max(contours, key=cv2.contourArea)[:, 0].astype(np.float32) + 0.5
    return largest if len(largest) > 2 else np.zeros((0, 2), np.float32)
