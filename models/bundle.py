"""Model files: one safetensors file whose header holds the description as JSON. Nothing in it can be executed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

FORMAT_VERSION = 1
SUFFIX = ".c2f"
_KEY = "coarse2fine"


class ModelError(ValueError):
    """A model cannot be loaded; the message names the file, the cause and the remedy."""


def embedded_names() -> list[str]:
    """Names of the models that come with the package."""
    folder = resources.files(__package__) / "embedded"
    return sorted(f.name.removesuffix(SUFFIX) for f in folder.iterdir() if f.name.endswith(SUFFIX))


def locate(model: str | os.PathLike[str]) -> Path:
    """Path of a model file, given as a path or as the name of an embedded model.

    Raises
    ------
    ModelError
        If there is neither such a file nor such an embedded model.
    """
    path = Path(model)
    if path.is_file():
        return path
    if path.is_dir():
        raise ModelError(f"{path} is a directory, expected a {SUFFIX} file written by Model.save")
    if str(model) in embedded_names():
        return Path(str(resources.files(__package__) / "embedded" / f"{model}{SUFFIX}"))
    known = ", ".join(repr(n) for n in embedded_names())
    raise ModelError(f"no model {str(model)!r}: it is neither a file nor one of the embedded models ({known})")


def packed(arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> bytes:
    """Content of a model file.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Weights and tables.
    description : mapping
        Everything else, as JSON values.
    """
    text = json.dumps({"format": FORMAT_VERSION, **description}, allow_nan=False, sort_keys=True)
    return save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata={_KEY: text})


def load_bundle(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and description of a model file.

    Raises
    ------
    ModelError
        If the file is no model, is damaged, or is of another format version.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            description = _description(path, (file.metadata() or {}).get(_KEY))
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no model file, or is damaged ({error}); fit or copy it again") from error
    return arrays, description


def under(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Those whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _description(path: Path, text: str | None) -> dict[str, Any]:
    """The description, if it is one that this version reads; before any tensor, of which others may hold any kind."""
    if text is None:
        raise ModelError(
            f"{path} is a safetensors file without a coarse2fine description; expected Model.save's output"
        )
    try:
        description = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path} has a damaged description ({error}); fit or copy it again") from error
    found = description.get("format")
    if found != FORMAT_VERSION:
        raise ModelError(
            f"{path} has model format {found}, this coarse2fine reads format {FORMAT_VERSION}; "
            f"install the version that wrote it ({description.get('written_by', 'unknown')}) or fit it again"
        )
    return description
