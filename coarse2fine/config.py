"""What is asked of an analysis, apart from the image: its parameters, and the model that it runs."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any

from coarse2fine.budget import Assurance, Budget
from coarse2fine.caps import Cap
from coarse2fine.model import Model
from coarse2fine.models.bundle import locate
from coarse2fine.models.runtime import Precision
from coarse2fine.tiling.regular import open_regular


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
