"""Parameters of an analysis: names, types, defaults, help texts and checks.

The command line and the signatures of `analyze` and `analyze_folder` are generated from the fields of `Config`. No
third-party module is imported, so that the command's help appears at once.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import wraps
from numbers import Real
from typing import Annotated, Any, Literal, ParamSpec, TypedDict, TypeVar, get_args, get_type_hints

from coarse2fine.models.precision import Precision

Cap = Literal["seen", "certain"]
"""Assumed maximum of finds in a block of skipped cells: by the sizes of the finds seen, or without assumption."""

AUDIT = 0.01
"""Share of the exhaustive pass's multiply-adds for the audit of an analysis that has no other limit."""

# Parameters that change only speed and rounding.
_NOT_STATED = ("device", "precision", "batch_size")
_P = ParamSpec("_P")
_R = TypeVar("_R")
_Function = TypeVar("_Function", bound=Callable[..., Any])


class AnalysisOptions(TypedDict, total=False):
    """The fields of `Config` as keyword arguments, for type checkers and editors, which cannot derive them.

    A test checks that names and types match `Config`.
    """

    budget: float | None
    cells: int | None
    seconds: float | None
    recall: float | None
    confidence: float
    audit: float | None
    cap: Cap
    threshold: float | None
    seed: int
    device: str | None
    precision: Precision
    batch_size: int | None


@dataclass(frozen=True, kw_only=True)
class Config:
    """The parameters of `analyze` as one value that can be stored and sent; `analyze` documents them.

    The annotated texts are the command line's help.

    Raises
    ------
    ValueError
        If parameters are out of range or contradict each other.
    """

    budget: Annotated[float | None, "limit on cost as a share of the exhaustive pass; 1 is that pass"] = None
    cells: Annotated[int | None, "limit on refined cells"] = None
    seconds: Annotated[float | None, "time after which no further window of an image is refined"] = None
    recall: Annotated[float | None, "recall of the exhaustive pass's finds to certify, such as 0.95"] = None
    confidence: Annotated[float, "confidence of the bounds on recall (default: %(default)s)"] = 0.95
    audit: Annotated[float | None, "share of the exhaustive pass for a random sample of skipped cells"] = None
    cap: Annotated[
        Cap, "most finds in a block, for --recall and --audit: by the sizes seen (default), or without assumption"
    ] = "seen"
    threshold: Annotated[float | None, "probability from which a find is reported"] = None
    seed: Annotated[int, "seed of random choices (default: %(default)s)"] = 0
    device: Annotated[str | None, "torch device (default: the best available)"] = None
    precision: Annotated[
        Precision,
        "number format; auto (default) takes bfloat16 if the hardware supports it, and 8-bit integers for scans of "
        "large images",
    ] = "auto"
    batch_size: Annotated[int | None, "windows refined at once (default: by their size)"] = None

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
                raise ValueError(f"{name} must be a number, got {value!r:.60}")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be a probability between 0 and 1, got {self.threshold}")
        if self.batch_size is not None and (self.batch_size < 1 or self.batch_size % 1 != 0):
            raise ValueError(f"batch_size must be a whole number of windows, at least 1; got {self.batch_size}")
        check_seed(self.seed)
        self._check_limits()
        self._check_recall()

    def _check_limits(self) -> None:
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise ValueError(
                f"budget must be a positive share of the exhaustive pass's cost, such as 0.1; got {self.budget}"
            )
        if self.cells is not None and (self.cells < 1 or self.cells % 1 != 0):
            raise ValueError(f"cells must be a whole number of cells, at least 1; got {self.cells}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds must be positive; got {self.seconds}")

    def _check_recall(self) -> None:
        if self.recall is not None and not 0 < self.recall < 1:
            raise ValueError(f"recall must be a share of the finds, such as 0.95; got {self.recall}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must be a probability, such as 0.95; got {self.confidence}")
        if self.audit is not None and not 0 <= self.audit < 1:
            raise ValueError(f"audit must be a share of the exhaustive pass's cost, such as 0.01; got {self.audit}")
        if self.cap not in get_args(Cap):
            raise ValueError(f'cap must be "seen" or "certain"; got {self.cap!r}')
        if self.audit is not None and self.recall is not None:
            raise ValueError("a recall to certify sizes its own audit: give recall or audit, not both")
        if self.recall is not None and self.cells is not None:
            raise ValueError("recall and cells exclude each other: limit a certification by budget or seconds")
        if self.audit and (self.cells is not None or self.seconds is not None):
            raise ValueError("a random sample has a fixed size: with an audit, limit the analysis by budget alone")

    @property
    def limited(self) -> bool:
        """Whether budget, cells or seconds are given; if several are, all apply."""
        return any(limit is not None for limit in (self.budget, self.cells, self.seconds))

    @property
    def exhaustive(self) -> bool:
        """Whether the budget asks for every cell to be refined."""
        return self.budget is not None and self.budget >= 1 and self.cells is None and self.seconds is None

    @property
    def sample(self) -> float:
        """Share of the exhaustive pass's multiply-adds for a random sample, if recall is defined for the model."""
        if self.audit is None:
            return 0.0 if self.limited or self.recall is not None else AUDIT
        return self.audit

    def parameters(self) -> dict[str, Any]:
        """The parameters that a result records, as JSON values; device and precision are in its runtime."""
        stated = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_STATED}
        return {**stated, "seed": int(self.seed)}


_NUMBERS = tuple(name for name, hint in get_type_hints(Config).items() if {int, float} & {hint, *get_args(hint)})


def check_seed(seed: int) -> None:
    """Raise a ValueError if a seed is no whole number of at least 0."""
    if seed % 1 != 0 or seed < 0:
        raise ValueError(f"seed must be a whole number, 0 or more; got {seed!r}")


def takes_options(function: _Function) -> _Function:
    """Decorate a function that ends in ``**options``: its signature shows the fields of `Config`, with defaults.

    They come before the function's own keyword-only parameters.
    """
    hints, whole = get_type_hints(Config), inspect.signature(function)
    own = [p for p in whole.parameters.values() if p.kind is not p.VAR_KEYWORD]
    shared = [p.replace(annotation=hints[p.name]) for p in inspect.signature(Config).parameters.values()]
    # Stable sort: positional parameters come first, then shared keyword-only ones.
    shown = sorted([*own, *shared], key=lambda p: (p.kind, p.name not in hints))
    function.__signature__ = whole.replace(parameters=shown)  # type: ignore[attr-defined]
    return function


def config_of(function: Callable[..., Any], options: AnalysisOptions) -> Config:
    """The `Config` from the ``**options`` of a function that `takes_options`.

    Raises
    ------
    TypeError
        If the function has no such parameters; the message names similar ones, and lists all.
    ValueError
        See `Config`.
    """
    _check_names(function, options.keys() - {f.name for f in fields(Config)})
    return Config(**options)


def names_checked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function: unknown keyword arguments raise a TypeError that names similar parameters, and lists all."""
    known = inspect.signature(function).parameters.keys()

    @wraps(function)
    def checked(*args: _P.args, **options: _P.kwargs) -> _R:
        _check_names(function, options.keys() - known)
        return function(*args, **options)

    return checked


def _check_names(function: Callable[..., Any], unknown: Iterable[str]) -> None:
    known = list(inspect.signature(function).parameters)
    for name in sorted(unknown):
        near = get_close_matches(name, known)
        hint = f"did you mean {' or '.join(near)}? Its" if near else "its"
        raise TypeError(f"{function.__name__}() has no parameter {name!r}; {hint} parameters are {', '.join(known)}")
