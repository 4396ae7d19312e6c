"""Container of a model file: safetensors, with the description as JSON in its header. Nothing in it is executable.

What the arrays and the description are is decided by `Model.save` and the refiner's `describe` and `arrays`; their
parts are in `coarse2fine.model_file`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from coarse2fine.models.errors import ModelError
from coarse2fine.tiling.storage.regular import open_regular

FORMAT_VERSION = 1
SUFFIX = ".c2f"
_KEY = "coarse2fine"
_UNBOUNDED = ("groups.threshold",)
_LENGTH_BYTES = 8
_MOST_HEADER = 4 * 2**20
_MOST_BYTES = 4 * 2**30


def embedded_names() -> list[str]:
    """Names of the models in the package."""
    folder = resources.files("coarse2fine.models") / "embedded"
    return sorted(f.name.removesuffix(SUFFIX) for f in folder.iterdir() if f.name.endswith(SUFFIX))


def locate(model: str | os.PathLike[str]) -> Path:
    """Path of a model file, given as a path or as the name of an embedded model.

    Raises
    ------
    ModelError
        If it is neither a file nor an embedded model.
    """
    path = Path(model)
    if path.is_file():
        return path
    if path.is_dir():
        raise ModelError(f"{path} is a directory, expected a {SUFFIX} file written by Model.save")
    if path.exists():
        raise ModelError(f"{path} is a pipe or device, expected a {SUFFIX} file written by Model.save")
    if str(model) in embedded_names():
        return Path(str(resources.files("coarse2fine.models") / "embedded" / f"{model}{SUFFIX}"))
    known = ", ".join(repr(n) for n in embedded_names())
    raise ModelError(f"no model {str(model)!r}: it is neither a file nor one of the embedded models ({known})")


@dataclass(frozen=True)
class ModelSpec:
    """A model file and the hash of its content, which stand for the model wherever it is needed."""

    path: str
    sha256: str

    @classmethod
    def of(cls, model: str | os.PathLike[str]) -> ModelSpec:
        """The spec of a model file, or of an embedded model by its name.

        Raises
        ------
        ModelError
            If there is no such model.
        """
        path = locate(model).absolute()
        with open_regular(path) as file:
            return cls(str(path), hashlib.file_digest(file, "sha256").hexdigest())


def packed(arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> bytes:
    """Content of a model file as bytes.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Weights and tables.
    description : mapping
        All other values, as JSON.
    """
    text = json.dumps({"format": FORMAT_VERSION, **description}, allow_nan=False, sort_keys=True)
    content: bytes = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata={_KEY: text})
    return content


def unpacked(file: BinaryIO, name: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and description of a model file; a false header cannot allocate more than the file's size.

    Parameters
    ----------
    file : binary file
        Buffered, at its beginning.
    name : str
        Name of the file, for messages.

    Raises
    ------
    ModelError
        If the file is no model, is damaged, or is of another format version.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 0 < length <= min(_MOST_HEADER, size - _LENGTH_BYTES):
            raise ValueError("the length of its header is not valid")
        description = _description(name, json.loads(file.read(length)))
        if size > _MOST_BYTES:
            raise ModelError(f"{name} has {size:,} bytes, expected a model of at most {_MOST_BYTES:,}; shrink its nets")
        file.seek(0)
        # Copied if read-only: torch needs writable arrays.
        arrays = {key: np.require(array, None, ["W", "A"]) for key, array in load(file.read()).items()}
    except ModelError:
        raise
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ModelError(f"{name} is no model file, or is damaged ({error}); fit or copy it again") from error
    return arrays, description


def under(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Arrays whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def check_finite(name: str, arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> None:
    """Raise a ModelError for NaN or infinite numbers, with which a model would find nothing and raise no error."""
    for key, array in arrays.items():
        # A feature in no group has an infinite threshold: it never fires.
        good = ~np.isnan(array) & (array > -np.inf) if key.endswith(_UNBOUNDED) else np.isfinite(array)
        if array.dtype.kind in "fc" and not good.all():
            raise ModelError(f"{name}: the tensor {key} holds NaN or infinite values; fit or copy the model again")
    try:
        place = _not_finite(description)
    except RecursionError as error:
        raise ModelError(f"{name} has a description that is nested too deeply; fit or copy it again") from error
    if place:
        raise ModelError(f"{name}: {place} is NaN or infinite; fit or copy the model again")


def _not_finite(value: Any, place: str = "") -> str | None:
    """Place of the first number in a description that is not finite; None if all are."""
    if isinstance(value, float):
        return None if math.isfinite(value) else place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for key, item in inner if (found := _not_finite(item, f"{place}.{key}".lstrip(".")))), None)


def _description(name: str, header: Any) -> dict[str, Any]:
    """The description, if this version reads it; checked before tensors, which other files may hold in any form."""
    about = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(about, dict):
        raise ValueError("its header is not valid")
    text = about.get(_KEY)
    if text is None:
        raise ModelError(
            f"{name} is a safetensors file without a coarse2fine description; expected Model.save's output"
        )
    try:
        description = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{name} has a damaged description ({error}); fit or copy it again") from error
    found = description.get("format")
    if found != FORMAT_VERSION:
        raise ModelError(
            f"{name} has model format {found!s:.20}, this coarse2fine reads format {FORMAT_VERSION}; "
            f"install the version that wrote it ({description.get('written_by', 'unknown')!s:.60}) or fit it again"
        )
    return description
