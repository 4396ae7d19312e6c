"""Signatures that are made at run time, for the reference: mkdocstrings reads the source and does not see them."""

from __future__ import annotations

import inspect
from pkgutil import resolve_name
from typing import Any

import griffe


class Signatures(griffe.Extension):
    """Replace the parameters of functions that end in ``**options`` by those that `inspect.signature` shows."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Change one function; called by griffe."""
        if "options" in func.parameters and func.path.startswith("coarse2fine."):
            shown = inspect.signature(resolve_name(func.path)).parameters.values()
            func.parameters = griffe.Parameters(*map(_parameter, shown))


def _parameter(given: inspect.Parameter) -> griffe.Parameter:
    default = None if given.default is inspect.Parameter.empty else repr(given.default)
    annotation = (
        inspect.formatannotation(given.annotation) if not isinstance(given.annotation, str) else given.annotation
    )
    kind = griffe.ParameterKind(given.kind.description)
    return griffe.Parameter(given.name, annotation=annotation.replace("typing.", ""), kind=kind, default=default)
