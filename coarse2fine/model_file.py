"""Parts of a model file: nets, firing rules, and the checks of files from untrusted sources.

`Model.save` and `load_model` put the parts together; `coarse2fine.bundle` is the container.

A file written by this version has these arrays:

- ``base.NAME``, the weights of the base, by their names in its `state_dict`;
- ``firing.NAME``, its firing rule, see `firing_arrays`; absent if the refiner learns from each image;
- ``glanceN.NAME`` and ``glanceN.firing.NAME``, the same of the N-th stage of the cascade before the base;
- those of the refiner's `arrays`, and ``classifier.NAME``, those of the classifier of finds, if there is one;
- ``bandN.NAME``, all of these of the N-th further model, for a coarser band of object sizes or a further expert.

The description has the entries of `_TEXT`, ``firing`` and ``glances`` with the values of these rules and stages,
``bands`` with the descriptions of the further models, ``output`` with the name of what its expert finds,
``classifier`` with the description of a classifier, and the entries of the refiner's `describe`. Older files lack
entries that were added since, so a new one needs a default when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import nn

from coarse2fine.bases import unfitted
from coarse2fine.bundle import under, unpacked
from coarse2fine.cascade import CascadeStage
from coarse2fine.models.base import Base
from coarse2fine.models.errors import ModelError
from coarse2fine.models.firing import Curve, Firing
from coarse2fine.tiling.storage.regular import open_regular

Arrays = Mapping[str, NDArray[Any]]
Net = TypeVar("Net", bound=nn.Module)

_NUMBER = (int, float)
_TEXT: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "task", "base"), (str,)),
    **dict.fromkeys(("geometry", "provenance"), (dict,)),
    **dict.fromkeys(("mean", "std"), (list,)),
    **dict.fromkeys(("channels", "window"), (int,)),
    **dict.fromkeys(("threshold", "tau"), _NUMBER),
}
"""Required entries of a description, and their types."""


def read_model_file(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and description of a model file.

    Raises
    ------
    ModelError
        If the file does not exist, is no model, is damaged, or has another format version.
    """
    try:
        with open_regular(path) as file, BufferedReader(file) as stream:
            return unpacked(stream, str(path))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error}); fit or copy it again") from error


def check_text(text: Mapping[str, Any]) -> None:
    """Raise a ValueError if a description lacks an entry, or one has the wrong type."""
    for name, types in _TEXT.items():
        value = text.get(name)
        if not isinstance(value, types) or isinstance(value, bool):
            raise ValueError(f"its {name} is {value!r:.60}, expected {' or '.join(t.__name__ for t in types)}")
    if text["channels"] not in (1, 3):
        raise ValueError(f"its nets read {text['channels']} channels, expected 1 or 3")


def filled(make: Callable[[], Net], arrays: Arrays) -> Net:
    """A net with the weights of a file, in evaluation mode.

    Shapes are compared on torch's meta device first, which takes no memory: a short description can state any size.

    Parameters
    ----------
    make : callable
        Makes the net on the default device.
    arrays : mapping of str to ndarray
        By the names in the net's `state_dict`.

    Raises
    ------
    ValueError
        If the arrays are not exactly the net's weights, in their shapes.
    """
    with torch.device("meta"):
        # Model files store scalars as arrays of one element.
        expected = {name: tuple(value.shape) or (1,) for name, value in make().state_dict().items()}
    found = {name: array.shape or (1,) for name, array in arrays.items()}
    if found != expected:
        name = min(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise ValueError(f"the weights {name} have the shape {found.get(name)}, expected {expected.get(name)}")
    for name, array in arrays.items():
        if name.endswith("running_var") and array.min(initial=0) < 0:
            raise ValueError(f"the variance {name} is negative")
    net = make()
    net.load_state_dict({name: torch.from_numpy(array).float() for name, array in arrays.items()})
    return net.eval()


def weights(net: nn.Module, prefix: str) -> dict[str, NDArray[Any]]:
    """The weights of a net by name, as float32."""
    return {f"{prefix}{key}": t.detach().cpu().float().numpy() for key, t in net.state_dict().items()}


def firing_arrays(firing: Firing, prefix: str) -> dict[str, NDArray[Any]]:
    """The arrays of a firing rule by name."""
    arrays: dict[str, NDArray[Any]] = {
        f"{prefix}features": firing.features,
        f"{prefix}raw_knots": firing.raw_knots,
        f"{prefix}probability_knots": firing.probability_knots,
    }
    for index, curve in enumerate(firing.curves):
        arrays[f"{prefix}{index}.edges"] = curve.edges
        arrays[f"{prefix}{index}.precision"] = curve.precision
    return arrays


def firing_of(arrays: Arrays, text: Mapping[str, Any], prefix: str, net: Base) -> Firing:
    """Build the firing rule of a net from the arrays that `firing_arrays` made, and its description."""
    own = under(arrays, prefix)
    width = net.high_channels
    if own["features"].max(initial=0) >= width:
        raise ValueError(f"a rule reads feature {own['features'].max()} of a net that has {width}")
    curves = tuple(Curve(own[f"{i}.edges"], own[f"{i}.precision"]) for i in range(len(own["features"])))
    return Firing(text["rule"], text["prior"], own["features"], curves, own["raw_knots"], own["probability_knots"])


def describe_stage(level: CascadeStage, prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Description of a cascade stage in a model file; adds its arrays to `arrays`."""
    assert level.firing is not None
    arrays |= weights(level.net, prefix) | firing_arrays(level.firing, f"{prefix}firing.")
    return {
        "net": str(level.net.spec),
        "cell": level.cell,
        "downsample": level.downsample,
        "tau": level.tau,
        "firing": {"rule": level.firing.rule, "prior": level.firing.prior},
    }


def stage_of(channels: int, text: dict[str, Any], prefix: str, arrays: dict[str, NDArray[Any]]) -> CascadeStage:
    """Build a cascade stage from its description and the arrays of a file."""
    own = {key: value for key, value in under(arrays, prefix).items() if not key.startswith("firing.")}
    net = filled(unfitted(channels, text["net"]), own)
    firing = firing_of(arrays, text["firing"], f"{prefix}firing.", net)
    return CascadeStage(net, text["cell"], text["downsample"], firing, float(text["tau"]))
