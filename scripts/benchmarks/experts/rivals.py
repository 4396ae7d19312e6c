"""The same expert through other tools: SAHI's sliced prediction, supervision's InferenceSlicer, and a plain loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely import STRtree, box

from coarse2fine.bench.expert_answers import metered, run_tiles
from coarse2fine.engine import analyze
from coarse2fine.experts.expert import Expert
from coarse2fine.experts.finds import read_answer
from coarse2fine.experts.refiner import ExpertRefiner
from coarse2fine.experts.suppress import suppress_across
from coarse2fine.model import Model
from coarse2fine.models.candidates import Candidates
from coarse2fine.tiling.opening import open_image

Boxes = NDArray[np.float64]
"""Finds (n, 5): x0, y0, x1, y1 in pixels of the part, and the label's index."""
_SAME_IOU = 0.5


@dataclass(frozen=True)
class Part:
    """A part of a scene in whole tiles, and the same with the context around it.

    Parameters
    ----------
    pixels : ndarray, uint8, (h, w, 3)
    padded : ndarray, uint8, (h + 2 context, w + 2 context, 3)
        With its edges repeated, as a plain loop reads them: so every tool's slices are the tiles of the grid.
    tiles : int
    """

    pixels: NDArray[np.uint8]
    padded: NDArray[np.uint8]
    tiles: int

    @classmethod
    def of(cls, expert: Expert, pixels: NDArray[np.uint8]) -> Part:
        """A part from its pixels; ValueError if they are not whole tiles at full resolution."""
        height, width = pixels.shape[:2]
        if expert.downsample != 1 or height % expert.tile or width % expert.tile:
            raise ValueError(f"expected whole tiles of {expert.tile} px at full resolution, got {height} x {width} px")
        around = ((expert.context, expert.context),) * 2
        padded = np.stack([np.pad(pixels[..., i], around, mode="edge") for i in range(pixels.shape[2])], axis=-1)
        return cls(pixels, padded, height // expert.tile * (width // expert.tile))


Tool = Callable[[Expert, Part], Boxes]


def compare_rivals(model: Model, part: Part) -> tuple[dict[str, float], list[str]]:
    """Run an expert on all tiles of a part through every tool that is installed.

    Parameters
    ----------
    model : Model
        Fitted with an expert, which is present.
    part : Part

    Returns
    -------
    dict of str to float
        Figures by "tool/column": tiles run, seconds, the expert's part of them, finds, and `same`, the lesser of the
        shares of its finds that the plain loop has and of the plain loop's that it has (IoU of at least 0.5).
    list of str
        Notes on tools that were left out.
    """
    assert isinstance(model.refiner, ExpertRefiner)
    expert, refiner = model.refiner.expert, model.refiner

    def exhaustive(timed: Expert, given: Part) -> Boxes:
        with analyze(given.pixels, replace(model, refiner=replace(refiner, expert=timed)), budget=1.0) as analysis:
            numbers = {label.name: index for index, label in enumerate(model.labels)}
            rows = [(*r.full_box, numbers[r.label]) for r in analysis.regions]
        return np.array(rows, np.float64).reshape(-1, 5)[:, [1, 0, 3, 2, 4]]

    tools: dict[str, Tool] = {"plain": plain_loop, "ours@1": exhaustive}
    notes = []
    if expert.labels[0].kind != "object":
        notes.append(f"SAHI and supervision are left out for {expert.name}: they join boxes, and it finds areas")
    else:
        for name, tool in RIVALS.items():
            if find_spec(name) is None:
                notes.append(f"{name} is left out: it is not installed")
            else:
                tools[name] = tool
    found: dict[str, float] = {}
    reference: Boxes | None = None
    for name, tool in tools.items():
        with metered(expert) as (timed, meter):
            start = time.perf_counter()
            try:
                boxes = tool(timed, part)
            except ImportError as error:
                notes.append(f"{name} is left out: it cannot be imported ({error})")
                continue
            seconds = time.perf_counter() - start
        reference = boxes if reference is None else reference
        row = {"tiles": meter.tiles, "seconds": seconds, "expert_seconds": meter.seconds, "finds": len(boxes)}
        found |= {f"{name}/{column}": float(value) for column, value in row.items()}
        found[f"{name}/same"] = same_share(boxes, reference)
    return found, notes


def plain_loop(expert: Expert, part: Part) -> Boxes:
    """Read, call, keep what each tile owns, suppress duplicates between tiles."""
    with open_image(part.pixels) as image:
        rows, columns = expert.grid(image)
        parts = [found for _, found in run_tiles(expert, image, np.arange(rows * columns))]
    every = suppress_across(Candidates.concatenate(parts), expert.overlap)
    side = expert.cell
    return np.concatenate([every.boxes[:, [1, 0, 3, 2]] * side, every.labels[:, None]], axis=1).astype(np.float64)


def through_sahi(expert: Expert, part: Part) -> Boxes:
    """SAHI's `get_sliced_prediction`, with greedy suppression by intersection over the smaller box."""
    from sahi.models.base import DetectionModel  # noqa: PLC0415 (an extra)
    from sahi.predict import get_sliced_prediction  # noqa: PLC0415
    from sahi.prediction import ObjectPrediction  # noqa: PLC0415

    whole = _whole_slice(expert)

    class Adapted(DetectionModel):  # type: ignore[misc, unused-ignore]
        def load_model(self) -> None:
            self.model = whole

        def perform_inference(self, image: NDArray[np.uint8]) -> None:
            self._original_predictions = _boxes_in(whole, np.ascontiguousarray(image))

        def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list: Any = None, full_shape_list: Any = None
        ) -> None:
            shift, shape = shift_amount_list[0], full_shape_list[0] if full_shape_list else None
            self._object_prediction_list_per_image = [
                [
                    ObjectPrediction(
                        bbox=row[:4].tolist(),
                        category_id=int(row[4]),
                        category_name=whole.labels[int(row[4])].name,
                        score=float(row[5]),
                        shift_amount=shift,
                        full_shape=shape,
                    )
                    for row in self._original_predictions
                ]
            ]

    side = expert.read_side
    ratio = (2 * expert.context + 0.5) / side  # truncated to 2 x context pixels
    answer = get_sliced_prediction(
        part.padded,
        Adapted(confidence_threshold=expert.confidence, device="cpu"),
        slice_height=side,
        slice_width=side,
        overlap_height_ratio=ratio,
        overlap_width_ratio=ratio,
        perform_standard_pred=False,
        postprocess_type="NMS",
        postprocess_match_metric="IOS",
        postprocess_match_threshold=expert.overlap,
        verbose=0,
    )
    rows = [(*p.bbox.to_xyxy(), p.category.id) for p in answer.object_prediction_list]
    return _unpadded(np.array(rows, np.float64).reshape(-1, 5), expert, part)


def through_supervision(expert: Expert, part: Part) -> Boxes:
    """Supervision's `InferenceSlicer`, with suppression by intersection over the smaller box."""
    import supervision as sv  # noqa: PLC0415 (an extra)

    whole = _whole_slice(expert)

    def detect(pixels: NDArray[np.uint8]) -> Any:
        found = _boxes_in(whole, np.ascontiguousarray(pixels))
        return sv.Detections(
            xyxy=found[:, :4].clip(0, expert.read_side).astype(np.float32),  # it warns of boxes that leave their slice
            confidence=found[:, 5].astype(np.float32),
            class_id=found[:, 4].astype(int),
        )

    slicer = sv.InferenceSlicer(
        callback=detect,
        slice_wh=(expert.read_side, expert.read_side),
        overlap_wh=(2 * expert.context, 2 * expert.context),
        overlap_filter=sv.OverlapFilter.NON_MAX_SUPPRESSION,
        overlap_metric=sv.OverlapMetric.IOS,
        iou_threshold=expert.overlap,
        thread_workers=1,
    )
    found = slicer(part.padded)
    labels = np.zeros(len(found)) if found.class_id is None else found.class_id
    return _unpadded(np.concatenate([found.xyxy, labels[:, None]], axis=1).astype(np.float64), expert, part)


RIVALS: Mapping[str, Tool] = {"sahi": through_sahi, "supervision": through_supervision}
"""Tools by the package that brings them."""


def _whole_slice(expert: Expert) -> Expert:
    """The expert whose tile is all that it reads: these tools know no context."""
    return replace(expert, tile=expert.read_side, cell=expert.read_side, context=0)


def _boxes_in(whole: Expert, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """All boxes in one slice, (n, 6): x0, y0, x1, y1, label, score."""
    found = read_answer(whole, whole(pixels[None]), np.zeros((1, 2), np.int64), whole.confidence)
    boxes = found.boxes[:, [1, 0, 3, 2]] * whole.tile
    return np.concatenate([boxes, found.labels[:, None], found.scores[:, None]], axis=1).astype(np.float64)


def _unpadded(boxes: Boxes, expert: Expert, part: Part) -> Boxes:
    """Boxes in pixels of the part, without those whose centre lies in the padding."""
    moved = boxes - np.array([expert.context] * 4 + [0])
    centre = (moved[:, :2] + moved[:, 2:4]) / 2
    inside = ((centre >= 0) & (centre < part.pixels.shape[1::-1])).all(axis=1)
    found: Boxes = moved[inside]
    return found


def same_share(these: Boxes, those: Boxes) -> float:
    """The lesser of the shares of each set's boxes that the other has, with the same label; 1 if both are empty."""
    if not len(these) or not len(those):
        return float(len(these) == len(those))
    a, b = (box(*boxes[:, :4].T) for boxes in (these, those))
    first, second = STRtree(b).query(a)
    ious = np.array(
        [p.intersection(q).area / max(p.union(q).area, 1e-9) for p, q in zip(a[first], b[second], strict=True)]
    )
    same = (ious >= _SAME_IOU) & (these[first, 4] == those[second, 4])
    return min(len(set(first[same].tolist())) / len(these), len(set(second[same].tolist())) / len(those))
