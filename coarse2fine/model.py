"""Models: a cascade of scans, the last of them the base's, and a refiner for the windows that they choose."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine._version import __version__
from coarse2fine.bases import unfitted
from coarse2fine.bundle import check_finite, locate, packed, under
from coarse2fine.cascade import DENSE_SIDE, MOST_PIXELS, CascadeStage, Geometry
from coarse2fine.experts.again import GivenExperts, ListedExperts, all_again
from coarse2fine.experts.expert import Expert
from coarse2fine.experts.outputs import check_outputs
from coarse2fine.experts.refiner import ExpertRefiner
from coarse2fine.learned import learned_from
from coarse2fine.model_file import (
    check_text,
    describe_stage,
    filled,
    firing_arrays,
    firing_of,
    read_model_file,
    stage_of,
    weights,
)
from coarse2fine.models.base import Base
from coarse2fine.models.errors import ModelError
from coarse2fine.models.firing import Firing
from coarse2fine.refiners.protocol import Label, Refiner
from coarse2fine.refiners.registry import find_refiner
from coarse2fine.specialists.classifier import Classifier
from coarse2fine.specialists.groups import SpecialistGroups
from coarse2fine.specialists.tree import SpecialistTree
from coarse2fine.terminal import printable
from coarse2fine.tiling.geometry import ceil_div
from coarse2fine.tiling.writing.atomic import replace_file

__all__ = ["DENSE_SIDE", "MOST_PIXELS", "CascadeStage", "Geometry", "Model", "load_model"]

_LEAST_STD = 1e-6


@dataclass(frozen=True)
class Model:
    """Model that `fit` returns and `analyze` runs.

    Parameters
    ----------
    name : str
    geometry : Geometry
    mean, std : tuple of float
        Normalisation of each channel, of pixels in 0..1.
    base : Base
        The net that scans: a built-in `ConvStack`, a `Backbone` from timm, or a registered kind.
    refiner : Refiner
        The part that runs on the chosen windows, with the labels of its finds.
    firing : Firing or None
        Rule from the base's activations to probabilities; None if the refiner learns from each image what is usual.
    threshold : float
        Probability from which the refiner's answer counts as found.
    tau : float
        Expected finds from which a window is worth refining when no budget is given.
    window : int
        Side of the smallest window, in cells.
    cascade : tuple of CascadeStage
        Cheaper scans before the base's, coarsest first. Each stage, and then the base, scans only the cells that the
        one before it chose. Cell sides are multiples of the next stage's.
    provenance : mapping
        Training data, seed, figures; JSON values.
    others : tuple of Model
        Further models over the same image, each for a band of larger objects, in the order of the planes that they
        refine, or for a further expert; all other fields are those of the band of the smallest objects, or of the first
        expert.
    output : str
        Name of what its expert finds, if there may be several experts.
    classifier : Classifier or None
        Names the finds of objects, after a closer look at each; None if the refiner's classes stand.
    """

    name: str
    geometry: Geometry
    mean: tuple[float, ...]
    std: tuple[float, ...]
    base: Base
    refiner: Refiner
    firing: Firing | None = None
    threshold: float = 0.5
    tau: float = 0.05
    window: int = 2
    cascade: tuple[CascadeStage, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[Model, ...] = ()
    output: str = ""
    classifier: Classifier | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        if self.classifier is not None:
            kinds = ([each.name for each in self.refiner.labels if each.kind == kind] for kind in ("object", "area"))
            self.classifier.check_fits(self.channels, *kinds)
        g = self.geometry
        if self.base.spec.stride * g.scan_downsample != g.cell:
            raise ValueError(f"the base's stride {self.base.spec.stride} does not make cells of {g.cell} px")
        stride, plane = self.refiner.stride, self.refiner.downsample
        if plane != g.refine_downsample or stride * plane != g.fine_cell:
            raise ValueError(
                f"the refiner's stride {stride} at 1/{plane} does not make {g.fine_cell} px at 1/{g.refine_downsample}"
            )
        if self.expert is not None and self.expert.tile * plane != g.cell:
            raise ValueError(
                f"the expert's tiles of {self.expert.tile} px at 1/{plane} are not the cells of {g.cell} px"
            )
        for level, closer in pairwise(self.levels):
            finer = level.cell > closer.cell or level.downsample > closer.downsample
            if level.cell % (closer.cell * closer.net.spec.align) or not finer:
                raise ValueError(
                    f"cells of {level.cell} px at 1/{level.downsample} cannot come before {closer.cell} px at "
                    f"1/{closer.downsample}: expected a multiple of the next stage's cells, or a coarser plane"
                )
        self._check_bands()

    def _check_bands(self) -> None:
        bands, experts = self.bands, {band.output: band.expert for band in self.bands if band.expert is not None}
        if any(band.others for band in self.others):
            raise ValueError("expected models for bands, or for experts, without bands of their own")
        if len(bands) > 1 and any(band.refiner.learns or band.channels != self.channels for band in bands):
            raise ValueError("expected bands, or experts, of fitted models that read the same channels")
        if len(experts) == len(bands) and (len(bands) > 1 or self.output):
            check_outputs(experts)
        elif (len(bands) > 1 and experts) or any(band.output for band in bands):
            raise ValueError("expected an expert and a name of its own for each output")
        elif self.cell != min(band.geometry.cell for band in bands):
            raise ValueError("expected bands whose cells are multiples of the smallest")
        elif any(b.geometry.refine_downsample <= a.geometry.refine_downsample for a, b in pairwise(bands)):
            raise ValueError("expected the bands in order of the planes that they refine, the finest first")

    def _check_numbers(self) -> None:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"expected a mean and a std for {self.channels} channel(s), got {self.mean}, {self.std}")
        if not np.isfinite(self.mean).all() or not all(_LEAST_STD <= std < np.inf for std in self.std):
            raise ValueError(f"expected finite means and stds of at least {_LEAST_STD:g}, got {self.mean}, {self.std}")
        if not (0 <= self.threshold <= 1 and 0 <= self.tau < np.inf and 0 < self.window <= MOST_PIXELS):
            numbers = f"{self.threshold}, {self.tau} and {self.window}"
            raise ValueError(f"expected a threshold in 0..1, a tau of at least 0 and a window, got {numbers}")

    def __repr__(self) -> str:
        count = len(self.labels if self.classifier is None else self.classifier.labels)
        classes = f"{count} {'class' if count == 1 else 'classes'}"
        return f"<Model {self.name!r} ({self.refiner.kind}): {classes}, cells of {self.geometry.cell} px>"

    def __str__(self) -> str:
        first = f"{self.name} ({self.refiner.kind}): {', '.join(label.name for label in self.labels)}"
        bands = (line for band in self.bands for line in _described(band))
        return "\n  ".join([printable(first), *bands, *learned_from(self.provenance, scenes_only=bool(self.others))])

    @property
    def bands(self) -> tuple[Model, ...]:
        """Models of one band each, that of the smallest objects first, or of one expert each."""
        return (replace(self, others=()) if self.others else self, *self.others)

    @property
    def cell(self) -> int:
        """Side of a cell of results in full-resolution pixels: it divides the cells of all bands and experts."""
        return math.gcd(*(band.geometry.cell for band in (self, *self.others)))

    @property
    def labels(self) -> tuple[Label, ...]:
        """Classes of finds, before a classifier names them; of several bands or experts, in alphabetical order."""
        if not self.others:
            return self.refiner.labels
        every = {label.name: label for band in self.bands for label in band.refiner.labels}
        return tuple(every[name] for name in sorted(every))

    @property
    def tree(self) -> SpecialistTree | None:
        """The tree of specialists, if the refiner has one."""
        return next((each for each in self.refiner.specialists if isinstance(each, SpecialistTree)), None)

    @property
    def scan_groups(self) -> SpecialistGroups | None:
        """Specialists that the scan's features choose, if the refiner has any."""
        groups = (each for each in self.refiner.specialists if isinstance(each, SpecialistGroups) and each.block)
        return next(groups, None)

    @property
    def areas(self) -> NDArray[np.bool_]:
        """Which labels are areas, by their index."""
        return np.array([label.kind == "area" for label in self.labels], bool)

    @property
    def channels(self) -> int:
        """Channels the nets read: 1 (grey) or 3 (RGB)."""
        return self.base.spec.in_channels

    @property
    def levels(self) -> tuple[CascadeStage, ...]:
        """All stages of the cascade; the last is the base's."""
        g = self.geometry
        return (*self.cascade, CascadeStage(self.base, g.cell, g.scan_downsample, self.firing, self.tau))

    @property
    def longest_window(self) -> int:
        """Longest side, in cells, of a window that the refiner takes."""
        longest = self.refiner.longest
        return DENSE_SIDE if longest is None else max(1, longest // self.geometry.fine)

    @property
    def expert(self) -> Expert | None:
        """The user's model that refines, if it is one: the first, if it has alternatives."""
        return self.refiner.expert if isinstance(self.refiner, ExpertRefiner) else None

    @property
    def experts(self) -> tuple[tuple[str, Expert], ...]:
        """The user's models that refine, with the names of their outputs: each expert, then its alternatives."""
        refiners = [(band.output, band.refiner) for band in (self, *self.others)]
        return tuple((name, each) for name, own in refiners if isinstance(own, ExpertRefiner) for each in own.experts)

    def with_expert(self, given: GivenExperts | ListedExperts) -> Model:
        """A copy with the experts that it was fitted with, so that it can run.

        Parameters
        ----------
        given : Expert, str, or sequence or mapping of these
            The expert, or its text, see `coarse2fine.expert`; with alternatives all of them, in the order of the fit;
            with several outputs by their names.

        Raises
        ------
        ModelError
            If the model was not fitted with an expert, or with another one.
        """
        made = iter(all_again(self._known_experts("expert"), given))
        return self._with_refiners(lambda refiner: refiner.with_experts([next(made) for _ in refiner.experts]))

    def with_cache(self, folder: str | os.PathLike[str]) -> Model:
        """A copy whose experts' answers are stored in a folder, and are not asked for again.

        Raises
        ------
        ModelError
            If the model was not fitted with an expert.
        """
        self._known_experts("cache")
        return self._with_refiners(lambda refiner: replace(refiner, cache=Path(folder)))

    def _known_experts(self, given: str) -> tuple[tuple[str, Expert], ...]:
        """The experts; an error if there are none although the parameter `given` is for them."""
        if not self.experts:
            raise ModelError(f"{self.name} was not fitted with an expert: leave out {given}, or fit(..., expert=...)")
        return self.experts

    def _with_refiners(self, change: Callable[[ExpertRefiner], ExpertRefiner]) -> Model:
        """A copy with changed refiners, all of which run experts."""
        known = [(each, each.refiner) for each in self.bands]
        first, *others = (replace(each, refiner=change(own)) for each, own in known if isinstance(own, ExpertRefiner))
        return replace(first, others=tuple(others))

    def refiner_macs(self, cell_height: int, cell_width: int) -> int:
        """Multiply-adds of the refiner without specialists on one window, halo included; sides in cells."""
        fine = self.geometry.fine
        return self.refiner.macs(cell_height * fine, cell_width * fine)

    def window_macs(self, cell_height: int, cell_width: int) -> int:
        """Multiply-adds of refining one window, with halo and what is set aside for specialists; sides in cells."""
        fine, groups = self.geometry.fine, self.scan_groups
        macs = self.refiner.expected_macs(cell_height * fine, cell_width * fine)
        if groups is not None and self.cascade:  # the base has not scanned all windows: it does so before refining
            macs += self.base.spec.macs(*(groups.reach(side) for side in (cell_height, cell_width)))
        return macs

    def cell_shape(self, full_shape: tuple[int, int]) -> tuple[int, int]:
        """Cells of an image of `full_shape` pixels (height, width); those at the far edges may reach beyond it."""
        return ceil_div(full_shape[0], self.geometry.cell), ceil_div(full_shape[1], self.geometry.cell)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one file of weights and JSON; nothing in it can be executed.

        Parameters
        ----------
        path : path
            Usually with the suffix ``.c2f``. An existing file is replaced.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise ModelError(f"cannot save {target}: its folder does not exist; make it first")
        replace_file(target, packed(*_content(self)))
        return target


def load_model(model: str | os.PathLike[str] | Model) -> Model:
    """Load a model file or an embedded model.

    Parameters
    ----------
    model : path, str or Model
        A file written by `Model.save`, or the name of an embedded model; a `Model` is returned as it is.

    Raises
    ------
    ModelError
        If there is no such model, or the file is damaged or of another format version.
    """
    if isinstance(model, Model):
        return model
    path = locate(model)
    arrays, text = read_model_file(path)
    check_finite(str(path), arrays, text)
    try:
        return _assemble(arrays, text)
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise ModelError(f"{path} does not describe a whole model ({error}); fit or copy it again") from error


def _assemble(arrays: dict[str, NDArray[Any]], text: dict[str, Any]) -> Model:
    check_text(text)
    base = filled(unfitted(text["channels"], text["base"]), under(arrays, "base."))
    refiner = find_refiner(text["task"])(arrays, text, base)
    if refiner.learns == ("firing" in text):
        raise ValueError(f"expected a firing rule if the refiner does not learn from each image, got {text['task']!r}")
    return Model(
        name=text["name"],
        geometry=Geometry(**text["geometry"]),
        mean=tuple(map(float, text["mean"])),
        std=tuple(map(float, text["std"])),
        base=base,
        refiner=refiner,
        firing=firing_of(arrays, text["firing"], "firing.", base) if "firing" in text else None,
        threshold=float(text["threshold"]),
        tau=float(text["tau"]),
        window=text["window"],
        cascade=tuple(
            stage_of(text["channels"], described, f"glance{i}.", arrays)
            for i, described in enumerate(text.get("glances", ()))
        ),
        provenance=text["provenance"],
        others=tuple(_assemble(under(arrays, f"band{i}."), band) for i, band in enumerate(text.get("bands", ()))),
        output=text.get("output", ""),
        classifier=Classifier.load(arrays, text["classifier"]) if "classifier" in text else None,
    )


def _described(band: Model) -> list[str]:
    """Lines of a printed model on one band."""
    g = band.geometry
    scans = ", then ".join(f"1/{level.downsample}" for level in band.levels)
    sizes = band.provenance.get("band")
    lead = f"objects of {sizes[0]:,.0f} to {sizes[1]:,.0f} px: " if sizes else ""
    lead = f"{band.output} ({printable(', '.join(label.name for label in band.labels))}): " if band.output else lead
    return [
        f"{lead}scan at {scans}, refine at 1/{g.refine_downsample}, cells of {g.cell} px; "
        f"{band.refiner.macs_per_cell * g.fine**2 / g.cell**2 / 1e3:.2f} kMAC a pixel refined, "
        f"{band.base.spec.macs_per_cell / g.cell**2 / 1e3:.2f} scanned",
        *band.refiner.details(),
        *(() if band.classifier is None else band.classifier.lines()),
    ]


def _content(model: Model) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and description of a model file."""
    arrays = weights(model.base, "base.") | model.refiner.arrays(model.base)
    description: dict[str, Any] = {
        **model.refiner.describe(),
        "written_by": f"coarse2fine {__version__}",
        "name": model.name,
        "task": model.refiner.kind,
        "geometry": asdict(model.geometry),
        "mean": model.mean,
        "std": model.std,
        "base": str(model.base.spec),
        "channels": model.channels,
        "threshold": model.threshold,
        "tau": model.tau,
        "window": model.window,
        "provenance": dict(model.provenance),
    }
    if model.firing is not None:
        arrays |= firing_arrays(model.firing, "firing.")
        description["firing"] = {"rule": model.firing.rule, "prior": model.firing.prior}
    description["glances"] = [describe_stage(level, f"glance{i}.", arrays) for i, level in enumerate(model.cascade)]
    if model.output:
        description["output"] = model.output
    if model.classifier is not None:
        arrays |= model.classifier.arrays()
        description["classifier"] = model.classifier.describe()
    if model.others:
        description["bands"] = []
    for i, band in enumerate(model.others):
        own, text = _content(band)
        arrays |= {f"band{i}.{name}": array for name, array in own.items()}
        description["bands"].append(text)
    return arrays, description
