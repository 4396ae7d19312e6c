"""Tasks of the gigapixel benchmark, each in a process of its own, so that its peak memory can be measured.

``python -m coarse2fine.bench.in_process`` reads the arguments of one task as JSON from standard input and prints its
result as JSON. The parent calls `run_apart`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from coarse2fine.bench.child_process import printed_json
from coarse2fine.bench.peak import PEAK_IS_KNOWN, peak_memory
from coarse2fine.demo.gigapixel import refine_sample
from coarse2fine.engine import analyze
from coarse2fine.model import load_model
from coarse2fine.pixel_size import at_pixel_size
from coarse2fine.region import Region
from coarse2fine.steps.classify import classify
from coarse2fine.steps.conclude import conclude
from coarse2fine.steps.plan import dense_plan
from coarse2fine.steps.scan import Scan
from coarse2fine.tiling.opening import open_image

_SEED = 2


def analysis(path: str, model: str, tau: float | None = None) -> dict[str, Any]:
    """Analyse an image without an audit.

    Parameters
    ----------
    path, model : str
    tau : float, optional
        Threshold of windows; by default the model's own.

    Returns
    -------
    dict
        "macs", "exhaustive_macs", "seconds" (with opening and loading of the model), "bytes" decoded, "fetched",
        "chunks", "refined" (share of the cells), and "regions" (see `regions_from`).
    """
    start = time.perf_counter()
    loaded = load_model(model)
    if tau is not None:
        loaded = replace(loaded, tau=tau)
    with analyze(path, loaded, audit=0.0) as done:
        cost = done.cost
        names = ("macs", "exhaustive_macs", "bytes", "fetched", "chunks")
        found: dict[str, Any] = {name: getattr(cost, name) for name in names}
        found |= {"seconds": time.perf_counter() - start, "refined": cost.cells_refined / cost.cells}
        return found | {"regions": [_plain(region) for region in done.regions]}


def exhaustive(path: str, model: str, share: float) -> dict[str, Any]:
    """Refine a random share of the blocks of the exhaustive pass.

    Parameters
    ----------
    path, model : str
    share : float
        Above 0, up to 1.

    Returns
    -------
    dict
        "seconds" (scaled to all blocks), "bytes" decoded (so too), "blocks" refined, "all" blocks, and "regions" with
        their centre in these blocks.
    """
    with open_image(path) as image:
        loaded = at_pixel_size(load_model(model), image)
        blocks = len(dense_plan(loaded.cell_shape((image.height, image.width))))
        part = refine_sample(image, loaded, max(1, round(share * blocks)), _SEED)
        covered, cell = part.plan.covered(), loaded.geometry.cell
        finds = conclude(part.fine.candidates, loaded, Scan.none(), image, loaded.threshold)
        regions = classify(finds, loaded, image).regions
        inside = [r for r in regions if covered[tuple(int(at // cell) for at in r.full_centre)]]
    return {
        "seconds": part.seconds,
        "bytes": part.bytes,
        "blocks": len(part.plan),
        "all": blocks,
        "regions": [_plain(region) for region in inside],
    }


def _plain(region: Region) -> list[Any]:
    return [region.label, float(region.score), *(float(at) for at in region.full_box)]


def regions_from(rows: Sequence[Sequence[Any]]) -> list[Region]:
    """Regions from rows of label, score, y0, x0, y1, x1 (full-resolution pixels)."""
    return [Region(label=label, score=score, full_box=(y0, x0, y1, x1)) for label, score, y0, x0, y1, x1 in rows]


_TASKS: dict[str, Callable[..., dict[str, Any]]] = {"analysis": analysis, "exhaustive": exhaustive}


def run_apart(task: str, **given: Any) -> dict[str, Any]:
    """Run one of the tasks in a fresh process.

    Parameters
    ----------
    task : {"analysis", "exhaustive"}
    **given
        Its arguments, JSON values.

    Returns
    -------
    dict
        Its result, and "peak", the process's peak memory in bytes, if it is known.

    Raises
    ------
    OSError
        If the process fails; with the last line that it printed.
    """
    command = [sys.executable, "-m", __name__]
    return printed_json(command, f"the process that measures the {task}", given=json.dumps([task, given]))


if __name__ == "__main__":
    name, arguments = json.load(sys.stdin)
    result = _TASKS[name](**arguments)
    print(json.dumps(result | ({"peak": peak_memory()} if PEAK_IS_KNOWN else {})))
