"""A model: a base that scans, a rule that reads its activations, and a net that refines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine._version import __version__
from coarse2fine.models.bundle import ModelError, load_bundle, locate, save_bundle
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.firing import Curve, Firing

Task = Literal["detect", "explore"]


@dataclass(frozen=True)
class Geometry:
    """How the planes of a model hang together.

    Parameters
    ----------
    cell : int
        Side of a cell, the square under one position of the base's feature map, in full-resolution pixels.
    scan_downsample, refine_downsample : int
        Full-resolution pixels per pixel of the plane the base scans and of the plane the refine net reads.
    fine : int
        Fine cells (positions of the refine net's map) along one side of a cell.
    """

    cell: int
    scan_downsample: int
    refine_downsample: int
    fine: int = 1

    def __post_init__(self) -> None:
        if self.cell % (self.scan_downsample * self.fine) or self.cell % (self.refine_downsample * self.fine):
            raise ValueError(f"a cell must be whole pixels in every plane, got {self}")

    @property
    def fine_cell(self) -> int:
        """Side of a fine cell in full-resolution pixels."""
        return self.cell // self.fine


@dataclass(frozen=True)
class Label:
    """A class: countable objects with a box, or an area without a natural size."""

    name: str
    kind: Literal["object", "area"] = "object"


@dataclass(frozen=True)
class Model:
    """What `fit` returns and `analyze` runs.

    Parameters
    ----------
    name : str
    task : {"detect", "explore"}
        Trained on annotations, or without any: then what is rare in the image at hand is interesting.
    geometry : Geometry
    mean, std : tuple of float
        Normalisation of each channel, of pixels in 0..1.
    base, refiner : ConvStack
        The net that scans and the net that refines; one and the same encoder in an "explore" model.
    labels : tuple of Label
    firing : Firing or None
        How the base's activations choose; None in an "explore" model, which learns it from each image.
    threshold : float
        Probability from which the refine net's answer counts as found.
    tau : float
        Expected finds from which a window is worth refining when no budget is given.
    window : int
        Side of the smallest window, in cells.
    provenance : mapping
        Training data, seed, figures; JSON values.
    """

    name: str
    task: Task
    geometry: Geometry
    mean: tuple[float, ...]
    std: tuple[float, ...]
    base: ConvStack
    refiner: ConvStack
    labels: tuple[Label, ...] = ()
    firing: Firing | None = None
    threshold: float = 0.5
    tau: float = 0.05
    window: int = 2
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        g = self.geometry
        if self.base.spec.stride * g.scan_downsample != g.cell:
            raise ValueError(f"the base's stride {self.base.spec.stride} does not make cells of {g.cell} px")
        if self.refiner.spec.stride * g.refine_downsample != g.fine_cell:
            raise ValueError(f"the refine net's stride {self.refiner.spec.stride} does not make {g.fine_cell} px")

    def __str__(self) -> str:
        g = self.geometry
        names = ", ".join(label.name for label in self.labels)
        return (
            f"{self.name} ({self.task}): {names}\n"
            f"  scan at 1/{g.scan_downsample}, refine at 1/{g.refine_downsample}, cells of {g.cell} px; "
            f"{self.refiner.spec.macs_per_cell * g.fine**2 / g.cell**2 / 1e3:.2f} kMAC a pixel refined, "
            f"{self.base.spec.macs_per_cell / g.cell**2 / 1e3:.2f} scanned"
        )

    @property
    def areas(self) -> NDArray[np.bool_]:
        """Which labels are areas, by their index."""
        return np.array([label.kind == "area" for label in self.labels], bool)

    @property
    def channels(self) -> int:
        """Channels the nets read: 1 (grey) or 3 (RGB)."""
        return self.base.spec.in_channels

    def window_macs(self, cells: int) -> int:
        """Multiply-adds of refining one window of `cells` by `cells` cells, halo included."""
        side = cells * self.geometry.fine
        return self.refiner.spec.macs(side, side)

    def exhaustive_macs(self, cell_shape: tuple[int, int]) -> int:
        """Multiply-adds of the exhaustive pass over an image of that many cells, as if it had no halo at all."""
        return round(self.refiner.spec.macs_per_cell * self.geometry.fine**2 * cell_shape[0] * cell_shape[1])

    def cell_shape(self, full_shape: tuple[int, int]) -> tuple[int, int]:
        """Cells of an image of `full_shape` pixels (height, width); those at the far edges may reach beyond it."""
        return -(-full_shape[0] // self.geometry.cell), -(-full_shape[1] // self.geometry.cell)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one file of weights and JSON; nothing in it can be executed.

        Parameters
        ----------
        path : path
            By custom ``.c2f``. An existing file is replaced.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise ModelError(f"cannot save {target}: its folder does not exist; make it first")
        arrays: dict[str, NDArray[Any]] = {}
        for part, net in (("base", self.base), ("refiner", self.refiner)):
            if part == "base" or self.refiner is not self.base:
                arrays |= {f"{part}.{key}": t.detach().cpu().float().numpy() for key, t in net.state_dict().items()}
        description: dict[str, Any] = {
            "written_by": f"coarse2fine {__version__}",
            "name": self.name,
            "task": self.task,
            "geometry": asdict(self.geometry),
            "mean": self.mean,
            "std": self.std,
            "base": str(self.base.spec),
            "refiner": str(self.refiner.spec),
            "channels": self.channels,
            "labels": [asdict(label) for label in self.labels],
            "threshold": self.threshold,
            "tau": self.tau,
            "window": self.window,
            "provenance": dict(self.provenance),
        }
        if self.firing is not None:
            arrays |= _firing_arrays(self.firing)
            description["firing"] = {"rule": self.firing.rule, "prior": self.firing.prior}
        save_bundle(target, arrays, description)
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
    arrays, text = load_bundle(path)
    try:
        return _assemble(arrays, text)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{path} does not describe a whole model ({error}); fit or copy it again") from error


def _assemble(arrays: dict[str, NDArray[Any]], text: dict[str, Any]) -> Model:
    base = _net(arrays, "base.", StackSpec.parse(text["channels"], text["base"]))
    own = any(key.startswith("refiner.") for key in arrays)
    refiner = _net(arrays, "refiner.", StackSpec.parse(text["channels"], text["refiner"])) if own else base
    return Model(
        name=text["name"],
        task=text["task"],
        geometry=Geometry(**text["geometry"]),
        mean=tuple(text["mean"]),
        std=tuple(text["std"]),
        base=base,
        refiner=refiner,
        labels=tuple(Label(**label) for label in text["labels"]),
        firing=_firing(arrays, text["firing"]) if "firing" in text else None,
        threshold=text["threshold"],
        tau=text["tau"],
        window=text["window"],
        provenance=text["provenance"],
    )


def _net(arrays: dict[str, NDArray[Any]], prefix: str, spec: StackSpec) -> ConvStack:
    net = ConvStack(spec)
    state = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(prefix)}
    net.load_state_dict(state)
    return net.eval()


def _firing_arrays(firing: Firing) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "firing.features": firing.features,
        "firing.raw_knots": firing.raw_knots,
        "firing.probability_knots": firing.probability_knots,
    }
    for index, curve in enumerate(firing.curves):
        arrays[f"firing.{index}.edges"] = curve.edges
        arrays[f"firing.{index}.precision"] = curve.precision
    return arrays


def _firing(arrays: dict[str, NDArray[Any]], text: dict[str, Any]) -> Firing:
    features = arrays["firing.features"]
    curves = tuple(Curve(arrays[f"firing.{i}.edges"], arrays[f"firing.{i}.precision"]) for i in range(len(features)))
    knots, values = arrays["firing.raw_knots"], arrays["firing.probability_knots"]
    return Firing(text["rule"], text["prior"], features, curves, knots, values)
