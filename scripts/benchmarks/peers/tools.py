"""Ways to run the refine net of a model over an image.

``python -m benchmarks.peers.tools TOOL IMAGE MODEL`` runs one and prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch.nn import functional

from benchmarks.experts.rivals import Boxes, Part, through_sahi, through_supervision
from coarse2fine.bench.peak import PEAK_IS_KNOWN, peak_memory
from coarse2fine.engine import analyze
from coarse2fine.experts.adapter import Adapter
from coarse2fine.experts.expert import Expert, expert
from coarse2fine.fitting.teacher import settle
from coarse2fine.model import Model, load_model
from coarse2fine.models.base import round_up
from coarse2fine.models.box_head import read_detections
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.runtime import Runtime
from coarse2fine.refiners.net import net_of
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.grid import blocks
from coarse2fine.tiling.opening import open_image

_SIDE = 512
"""Side, in pixels, of the core of a block in all tools but ours, which choose theirs themselves."""
_BATCH = 4
_WARM = 1024


class Net:
    """The refine net of a model on blocks of grey pixels.

    Parameters
    ----------
    model : Model
        With one channel, refined at full resolution.

    Attributes
    ----------
    margin : int
        Pixels around a block that the net reads.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.runtime = model, Runtime.choose()
        spec = net_of(model.refiner).spec
        self.margin, self.stride = spec.margin, spec.stride
        self._net = self.runtime.place(net_of(model.refiner))
        self._mean, self._std = (np.array(each, np.float32) for each in (model.mean, model.std))

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """Output (n, c, h, w) for blocks (n, h, w, 1) with their margin."""
        out: torch.Tensor = self._net(self.runtime.pixels(np.ascontiguousarray(pixels), self._mean, self._std))
        return out.float()

    def read(self, out: torch.Tensor, corners: NDArray[np.int64]) -> Candidates:
        """Candidates of an output."""
        return read_detections(out, corners, self.model.threshold)

    def boxes(self, found: Candidates, shape: tuple[int, ...]) -> Boxes:
        """Finds without duplicates, (n, 5): x0, y0, x1, y1 in pixels, and the label's index."""
        inside = np.flatnonzero((found.cells * self.stride < np.array(shape[:2])).all(axis=1))
        every = settle(found.take(inside), self.model)
        return np.concatenate([every.boxes[:, [1, 0, 3, 2]] * self.stride, every.labels[:, None]], axis=1, dtype=float)


def ours(path: str, model: Model, **limits: Any) -> Boxes:
    """An analysis."""
    with analyze(path, model, **({"audit": 0.0} | limits)) as done:
        numbers = {label.name: index for index, label in enumerate(model.labels)}
        rows = [(*r.full_box, numbers[r.label]) for r in done.regions]
    return np.array(rows, np.float64).reshape(-1, 5)[:, [1, 0, 3, 2, 4]]


def plain(path: str, model: Model) -> Boxes:
    """A loop over blocks: read with the margin, run the net, keep what is found."""
    net, found = Net(model), []
    with open_image(path) as image:
        for box in blocks(image.height, image.width, _SIDE):
            whole = Box(box.y0, box.x0, *(round_up(end, net.stride) for end in (box.y1, box.x1)))
            pixels = image.read(whole.expand(net.margin))
            corner = np.array([[box.y0, box.x0]]) // net.stride
            found.append(net.read(net(pixels[None]), corner))
        return net.boxes(Candidates.concatenate(found), image.shape)


def dask(path: str, model: Model) -> Boxes:
    """Dask's `map_overlap` over the stored array, in dask's threads."""
    net = Net(model)
    stored = da.from_zarr(path, component="0")
    shape = stored.shape
    cells = tuple(round_up(n, net.stride) // net.stride for n in shape)
    padded = da.pad(stored, [(0, c * net.stride - n) for c, n in zip(cells, shape, strict=True)], mode="edge")
    channels = int(net(np.zeros((1, 2 * net.margin + net.stride, 2 * net.margin + net.stride, 1), np.uint8)).shape[1])

    def run(block: NDArray[np.uint8]) -> NDArray[np.float32]:
        return net(block[None, :, :, None])[0].numpy()

    plane = padded.rechunk((_SIDE, _SIDE))
    out = plane.map_overlap(
        run,
        depth=net.margin,
        boundary="nearest",
        trim=False,
        new_axis=0,
        chunks=((channels,), *(tuple(n // net.stride for n in axis) for axis in plane.chunks)),
        dtype=np.float32,
        meta=np.zeros((0, 0, 0), np.float32),
    ).compute()
    return net.boxes(net.read(torch.from_numpy(out)[None], np.zeros((1, 2), np.int64)), shape)


def monai(path: str, model: Model) -> Boxes:
    """MONAI's `sliding_window_inference` on the image in memory; the margin of each window has almost no weight."""
    from monai.inferers.utils import sliding_window_inference  # noqa: PLC0415 (optional)

    net = Net(model)
    border = round_up(net.margin, net.stride)
    side, around = _SIDE + 2 * border, border // net.stride
    pixels = np.asarray(zarr.open_array(f"{path}/0", mode="r")[:])
    shape = pixels.shape
    ends = [round_up(n, _SIDE) - n for n in shape]
    pixels = np.pad(pixels, [(border, border + end) for end in ends], mode="edge")
    weight = torch.full((side, side), 1e-3)
    weight[border:-border, border:-border] = 1.0

    def predict(batch: torch.Tensor) -> torch.Tensor:
        cut = border - net.margin
        block = batch[:, 0, cut : side - cut, cut : side - cut, None].to(torch.uint8).numpy()
        return functional.pad(net(block), (around,) * 4)

    out = sliding_window_inference(
        torch.from_numpy(pixels)[None, None].float(),
        (side, side),
        _BATCH,
        predict,
        overlap=2 * border / side,
        roi_weight_map=weight,
    )
    assert isinstance(out, torch.Tensor)
    core = out[:, :, around:-around, around:-around]
    return net.boxes(net.read(core, np.zeros((1, 2), np.int64)), shape)


def sliced(path: str, model: Model, tool: Callable[[Expert, Part], Boxes]) -> Boxes:
    """A tool that slices an image in memory, with the net as a detector of boxes."""
    made = as_expert(model)
    pixels = np.asarray(zarr.open_array(f"{path}/0", mode="r")[:])[..., None]
    ends = [(0, -n % made.tile) for n in pixels.shape[:2]]
    return tool(made, Part.of(made, np.pad(pixels, [*ends, (0, 0)], mode="edge").repeat(3, axis=2)))


def as_expert(model: Model) -> Expert:
    """The refine net as an expert that returns boxes in each slice."""
    net = Net(model)
    context = round_up(net.margin, net.stride)

    def find(tiles: NDArray[np.uint8]) -> list[dict[str, Any]]:
        around = ((0, 0), (net.margin,) * 2, (net.margin,) * 2, (0, 0))
        out = net(np.pad(tiles[..., :1], around, mode="edge"))
        answers = []
        for index in range(len(tiles)):
            found = settle(net.read(out[index : index + 1], np.zeros((1, 2), np.int64)), model)
            boxes = found.boxes[:, [1, 0, 3, 2]] * net.stride
            answers.append({"boxes": boxes, "scores": found.scores, "labels": found.labels.astype(np.int64)})
        return answers

    labels = [label.name for label in model.labels]
    return expert(Adapter(find, "boxes"), tile=_SIDE, context=context, labels=labels, confidence=model.threshold)


TOOLS: Mapping[str, Callable[[str, Model], Boxes]] = {
    "ours": ours,
    "ours, exhaustive": partial(ours, budget=1.0),
    "plain loop": plain,
    "dask": dask,
    "monai": monai,
    "sahi": partial(sliced, tool=through_sahi),
    "supervision": partial(sliced, tool=through_supervision),
}
"""By name, functions of an OME-Zarr's path and the model."""
PACKAGES = {"monai": "monai", "sahi": "sahi", "supervision": "supervision"}


def main(name: str, path: str, model: str) -> dict[str, Any]:
    """Run one tool, after a warm-up of the net."""
    loaded = load_model(model)
    Net(loaded)(np.zeros((1, _WARM, _WARM, 1), np.uint8))
    start, spent = time.perf_counter(), time.process_time()
    boxes = TOOLS[name](path, loaded)
    found: dict[str, Any] = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - spent}
    return found | {"boxes": boxes.tolist()} | ({"peak": peak_memory()} if PEAK_IS_KNOWN else {})


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
