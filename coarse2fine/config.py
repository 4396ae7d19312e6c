"""What is asked of an analysis, apart from the image: its parameters, and the model that it runs."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from typing import Any, get_args

from coarse2fine.audit.caps import Cap
from coarse2fine.bundle import locate
from coarse2fine.model import Model
from coarse2fine.models.runtime import Precision
from coarse2fine.tiling.storage.regular import open_regular

AUDIT = 0.01
"""Share of the exhaustive pass's multiply-adds for the audit of an analysis that has no other limit."""


def check_seed(seed: int) -> None:
    """Raise a ValueError for what no random generator begins with."""
    if seed % 1 != 0 or seed < 0:
        raise ValueError(f"seed must be a whole number, 0 or more; got {seed!r}")


@dataclass(frozen=True)
class Config:
    """The parameters of `analyze` as one value, which can be stored and sent; see there for what they mean.

    Raises
    ------
    ValueError
        If parameters are out of range or contradict each other.
    """

    budget: float | None = None
    cells: int | None = None
    seconds: float | None = None
    recall: float | None = None
    confidence: float = 0.95
    audit: float | None = None
    cap: Cap = "seen"
    threshold: float | None = None
    seed: int = 0
    device: str | None = None
    precision: Precision = "auto"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be a probability between 0 and 1, got {self.threshold}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be a number of windows, at least 1; got {self.batch_size}")
        check_seed(self.seed)
        self.sure.sample(self.limits)

    @property
    def limits(self) -> Budget:
        """What the analysis may spend."""
        return Budget(self.budget, self.cells, self.seconds)

    @property
    def sure(self) -> Assurance:
        """How sure it has to be of its recall."""
        return Assurance(self.recall, self.confidence, self.audit, self.cap)

    def sample(self, model: Model) -> float:
        """Share of the exhaustive pass's multiply-adds for a random sample.

        Raises
        ------
        ValueError
            If a model has no recall to speak of.
        """
        if model.task == "detect":
            return self.sure.sample(self.limits)
        if self.recall or self.audit:
            raise ValueError(
                f"{model.name} was not fitted to anything, so there is no recall to speak of: leave out recall and "
                "audit, or fit a model"
            )
        return 0.0

    def parameters(self) -> dict[str, Any]:
        """What an analysis states of them, as JSON values; device and precision are in its runtime."""
        return {
            **self.limits.parameters(),
            **self.sure.parameters(),
            "threshold": self.threshold,
            "seed": int(self.seed),
        }


@dataclass(frozen=True)
class ModelSpec:
    """A model file and the hash of its content, which stand for the model wherever it is needed."""

    path: str
    sha256: str

    @classmethod
    def of(cls, model: str | os.PathLike[str]) -> ModelSpec:
        """Of a model file, or an embedded model by its name.

        Raises
        ------
        ModelError
            If there is no such model.
        """
        path = locate(model).absolute()
        with open_regular(path) as file:
            return cls(str(path), hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class Budget:
    """Limits of an analysis; those that are given all hold.

    Parameters
    ----------
    share : float, optional
        Of the exhaustive pass's multiply-adds, scan and halos included.
    cells : int, optional
        Cells that may be refined.
    seconds : float, optional
        Time after which no further window is refined.

    Raises
    ------
    ValueError
        If one is not positive, or the share is endless.
    """

    share: float | None = None
    cells: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share < math.inf:
            raise ValueError(
                f"budget must be a positive share of the exhaustive pass's cost, such as 0.1; got {self.share}"
            )
        if self.cells is not None and (self.cells < 1 or self.cells % 1 != 0):
            raise ValueError(f"cells must be a whole number of cells, at least 1; got {self.cells}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds must be positive; got {self.seconds}")

    @property
    def exhaustive(self) -> bool:
        """Whether every cell is to be refined, so that nothing has to be chosen."""
        return self.share is not None and self.share >= 1 and self.cells is None and self.seconds is None

    def parameters(self) -> dict[str, float | int | None]:
        """As JSON values."""
        return {"budget": self.share, "cells": self.cells, "seconds": self.seconds}


@dataclass(frozen=True)
class Assurance:
    """How sure an analysis has to be of its recall.

    Parameters
    ----------
    recall : float, optional
        To certify.
    confidence : float
        Of what is said of recall.
    audit : float, optional
        Share of the exhaustive pass's multiply-adds for a random sample; None for what is usual.
    cap : {"seen", "certain"}
        Most finds that a block can hold: by the sizes of the finds seen, or for certain.

    Raises
    ------
    ValueError
        If one is out of range, or they contradict each other.
    """

    recall: float | None = None
    confidence: float = 0.95
    audit: float | None = None
    cap: Cap = "seen"

    def __post_init__(self) -> None:
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

    def sample(self, limits: Budget) -> float:
        """Share of the exhaustive pass's multiply-adds for a random sample, within these limits.

        Raises
        ------
        ValueError
            If the limits leave no place for what is asked for.
        """
        if self.recall is not None and limits.cells is not None:
            raise ValueError("recall and cells exclude each other: limit a certification by budget or seconds")
        if self.audit and (limits.cells is not None or limits.seconds is not None):
            raise ValueError("a random sample has a fixed size: with an audit, limit the analysis by budget alone")
        if self.audit is None:
            return AUDIT if limits == Budget() and self.recall is None else 0.0
        return self.audit

    def parameters(self) -> dict[str, float | str | None]:
        """As JSON values."""
        return {"recall": self.recall, "confidence": self.confidence, "audit": self.audit, "cap": self.cap}
