"""Checkpoints of an analysis: partial work on a large image, on disk until the image is done."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine.bundle import under
from coarse2fine.models.candidates import Candidates
from coarse2fine.models.mixture import Mixture
from coarse2fine.refiners.novelty import NoveltyModel
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.refine import Refinement
from coarse2fine.steps.scan import Scan
from coarse2fine.tiling.writing.atomic import replacing_stream

Looked = tuple[Scan, NoveltyModel | NDArray[np.uint16] | None]


class Checkpoint:
    """Partial results of an analysis. This base class stores none."""

    def scan_or_load(self, look: Callable[[], Looked]) -> Looked:
        """The stored scan, with what the refiner needs from it; `look` makes them if none is stored."""
        return look()

    def refine_or_load(self, plan: Plan, refine: Callable[[Plan], Refinement]) -> Refinement:
        """The stored refinement of a whole plan; `refine` makes it if none is stored."""
        return refine(plan)

    def of_band(self, number: int) -> Checkpoint:  # noqa: ARG002
        """That of one band of a model, see `coarse2fine.model.Model.bands`; 0 for the finest."""
        return self


Arrays = dict[str, NDArray[Any]]


class StoredCheckpoint(Checkpoint):
    """The scan and the pieces of a refinement in files, each written atomically.

    A piece is identified by its windows. Results with read failures are not stored, so a later run tries again.

    Parameters
    ----------
    folder : Path
        For one image, one model and one configuration; created with the first file.

    Attributes
    ----------
    reused : int
        Parts that were loaded from files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = 0
        self._bands: dict[int, StoredCheckpoint] = {}

    @property
    def reused(self) -> int:
        return self._own + sum(each.reused for each in self._bands.values())

    def of_band(self, number: int) -> StoredCheckpoint:
        if not number:
            return self
        return self._bands.setdefault(number, StoredCheckpoint(self._folder / f"band{number}"))

    def scan_or_load(self, look: Callable[[], Looked]) -> Looked:
        path = self._folder / "scan.npz"
        if (arrays := self._load(path)) is not None:
            return _looked(arrays)
        made = look()
        if not made[0].failures:
            self._store(path, _scan_arrays(*made))
        return made

    def refine_or_load(self, plan: Plan, refine: Callable[[Plan], Refinement]) -> Refinement:
        path = self._folder / f"{_digest(plan)}.npz"
        if (arrays := self._load(path)) is not None:
            return _fine(arrays)
        made = refine(plan)
        if not (made.failures or made.interrupted):
            self._store(path, _fine_arrays(made))
        return made

    def _load(self, path: Path) -> Arrays | None:
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = dict(file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # damaged, for example by a power cut
            return None
        self._own += 1
        return arrays

    def _store(self, path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing_stream(path) as stream:
            np.savez(stream, allow_pickle=False, **arrays)


def _digest(plan: Plan) -> str:
    rows = np.column_stack([plan.cell_corners, plan.sides]).astype("<i8")
    return hashlib.sha256(rows.tobytes()).hexdigest()[:32]


def _scan_arrays(scan: Scan, novelty: NoveltyModel | NDArray[np.uint16] | None) -> Arrays:
    arrays: Arrays = {"interest": scan.interest, "fired": scan.fired, "macs": np.array(scan.macs)}
    arrays |= {name: value for name in ("groups", "leaves") if (value := getattr(scan, name)) is not None}
    if isinstance(novelty, NoveltyModel):
        arrays |= {f"mixture_{name}": value.numpy() for name, value in vars(novelty.mixture).items()}
        arrays |= {"sample": novelty.sample.numpy(), "block": np.array([novelty.block, *novelty.whole])}
    return arrays


def _looked(arrays: Arrays) -> Looked:
    groups, leaves = arrays.get("groups"), arrays.get("leaves")
    scan = Scan(arrays["interest"], arrays["fired"], int(arrays["macs"]), groups=groups, leaves=leaves)
    if "sample" not in arrays:
        return scan, scan.groups
    mixture = {name: torch.from_numpy(array) for name, array in under(arrays, "mixture_").items()}
    block, height, width = arrays["block"].tolist()
    return scan, NoveltyModel(Mixture(**mixture), torch.from_numpy(arrays["sample"]), block, (height, width))


def _fine_arrays(fine: Refinement) -> Arrays:
    found = {f"found_{name}": value for name, value in vars(fine.candidates).items()}
    return {**found, "done": fine.done, "macs": np.array(fine.macs), "notes": np.array(fine.notes, np.str_)}


def _fine(arrays: Arrays) -> Refinement:
    notes = tuple(arrays["notes"].tolist()) if "notes" in arrays else ()
    return Refinement(Candidates(**under(arrays, "found_")), arrays["done"], int(arrays["macs"]), (), notes=notes)
