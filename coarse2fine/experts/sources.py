"""Sources of experts: from a text or an object to the adapter of the model that it means."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from coarse2fine.experts.adapter import Adapter, Kind, find_adapter
from coarse2fine.experts.errors import ExpertError

# Where the classes of a library's models are defined, and the adapter that takes such objects, the most special first:
# a model of Ultralytics is a torch module too. Nothing of a library is imported to tell.
_LIVE = (
    ("ultralytics.engine.", "ultralytics"),
    ("sahi.models.", "sahi"),
    ("torchvision.models.detection.", "torchvision"),
    ("torchvision.models.segmentation.", "torchvision"),
    ("timm.models.", "timm"),
    ("torch.nn.", "torch_module"),
)
# Options of a net that a named function returns.
_NET_OPTIONS = ("mean", "std", "activation", "device")


@dataclass(frozen=True)
class Wanted:
    """What the user asked of an expert, for adapters that ask for it by parameters of these names.

    Parameters
    ----------
    kind : {"boxes", "map", "classes", "vectors"}, optional
        Form of the answer; None if not given.
    side : int
        Side of a tile as it is read, context included, in pixels.
    confidence : float, optional
        Least score of a find; None if not given.
    """

    kind: Kind | None
    side: int
    confidence: float | None


def find_model(model: Any, options: Mapping[str, Any], wanted: Wanted) -> tuple[Adapter, str]:
    """The adapter of a model, and the text from which it can be made again; empty for objects.

    Parameters
    ----------
    model : str, callable, torch.nn.Module or Adapter
        As in `coarse2fine.expert`.
    options : mapping
        Options for its adapter, or for the function that makes it.
    wanted : Wanted

    Raises
    ------
    ExpertError
        If it cannot be made, or an option is unknown.
    """
    if isinstance(model, str):
        return _of_text(model, options, wanted), model
    return _of_object(model, options, wanted), ""


def _of_object(model: Any, options: Mapping[str, Any], wanted: Wanted) -> Adapter:
    if home := _home(model):
        adapt = import_module(f"coarse2fine.experts.adapters.{home}").adapt
        return _built(adapt, model, options, wanted, type(model).__name__)
    if options:
        raise ExpertError(
            f"unknown option {min(options)!r}: this object takes none, options are for nets and for models named by a "
            "text"
        )
    if isinstance(model, Adapter):
        return model
    if not callable(model):
        raise ExpertError(f"expected a text, a callable or a torch.nn.Module as the expert, got {type(model).__name__}")
    return Adapter(model)


def _home(model: Any) -> str | None:
    """The adapter module that takes an object of a known library."""
    places = [f"{base.__module__}." for base in type(model).__mro__]
    return next((home for start, home in _LIVE if any(place.startswith(start) for place in places)), None)


def _built(build: Callable[..., Adapter], model: Any, options: Mapping[str, Any], wanted: Wanted, name: str) -> Adapter:
    """The adapter that a function makes, with what it asks for of `Wanted`."""
    try:
        signature = inspect.signature(build)
    except (TypeError, ValueError):
        return build(model, **options)
    given = {**{key: value for key, value in asdict(wanted).items() if key in signature.parameters}, **options}
    try:
        signature.bind(model, **given)
    except TypeError as error:
        known = [k for k, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY and k not in asdict(wanted)]
        raise ExpertError(f"{name}: {error}; its options are {', '.join(known) or 'none'}") from error
    return build(model, **given)


def _of_text(text: str, options: Mapping[str, Any], wanted: Wanted) -> Adapter:
    prefix, colon, rest = text.partition(":")
    if not colon or not prefix or not rest:
        raise ExpertError(f"expected 'adapter:model' or 'package.module:function' as the expert, got {text!r}")
    build = find_adapter(prefix) if prefix.isidentifier() else None
    if build is not None:
        return _built(build, rest, options, wanted, text)
    found = named_object(text)
    if _takes_tiles(found, options):
        return Adapter(found, sha256=_code_hash(text, options))
    mine, rest_of_options = _divided(found, options)
    made = found(**mine)
    if isinstance(made, Adapter):
        return made
    if not callable(made) and _home(made) is None:
        raise ExpertError(f"{text} returned {type(made).__name__}, expected a callable that takes tiles")
    return replace(_of_object(made, rest_of_options, wanted), sha256=_code_hash(text, options))


def _divided(function: Any, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options for a function, and for the net that it returns."""
    if "kwargs" in options:
        return dict(options["kwargs"]), {k: v for k, v in options.items() if k != "kwargs"}
    try:
        named = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return dict(options), {}
    net = {k: v for k, v in options.items() if k in _NET_OPTIONS and k not in named}
    return {k: v for k, v in options.items() if k not in net}, net


def _takes_tiles(found: Any, options: Mapping[str, Any]) -> bool:
    """Whether a function is the model itself, not one that makes it: it has one parameter without a default."""
    if options or inspect.isclass(found):
        return False
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return False
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) == 1


def named_object(text: str) -> Any:
    """The object that ``package.module:name`` names.

    Raises
    ------
    ExpertError
        If there is none.
    """
    module, _, name = text.partition(":")
    try:
        found = import_module(module)
    except ImportError as error:
        raise ExpertError(
            f"no adapter and no module {module!r} for the expert {text!r} ({error}); it must be importable here, and "
            "in every worker of a batch"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ExpertError(f"{module} has no {name!r}, which the expert {text!r} names")
        found = getattr(found, part)
    return found


def _code_hash(text: str, options: Mapping[str, Any]) -> str:
    """Hash of the source file of a named function and its options, which stands for the model that it makes."""
    module = import_module(text.partition(":")[0])
    path = getattr(module, "__file__", None)
    code = Path(path).read_bytes() if path and Path(path).is_file() else b""
    return hashlib.sha256(code + json.dumps(dict(options), sort_keys=True, default=str).encode()).hexdigest()
