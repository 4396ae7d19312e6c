"""The gate: which answers are uncertain enough to run a specialist."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .runtime import in_double


@dataclass(frozen=True, slots=True)
class Gate:
    """A band of probabilities in which an answer counts as uncertain.

    Parameters
    ----------
    low, high : float
        An answer is unsure if the probability of some class (of the likeliest, if they exclude each other) is at
        least `low` and below `high`.
    exclusive : bool
        Whether there is one class (softmax), or any number of them (each a sigmoid).
    """

    low: float
    high: float
    exclusive: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"expected a band of probabilities, got {self.low} to {self.high}")

    @classmethod
    def open(cls, *, exclusive: bool) -> Gate:
        """All answers pass, except those whose probabilities round to 1."""
        return cls(0.0, 1.0, exclusive)

    @classmethod
    def always(cls) -> Gate:
        """All answers pass."""
        return cls(0.0, 2.0)  # no probability is larger than 1

    def unsure(self, answers: Tensor) -> Tensor:
        """Which answers pass.

        Parameters
        ----------
        answers : Tensor, float, (n, classes, ...)
            Logits.

        Returns
        -------
        Tensor, bool, (n, ...)
        """
        answers = answers.float()
        if self.exclusive:
            likely = in_double(partial(torch.softmax, dim=1), answers).amax(dim=1, keepdim=True)
        else:
            likely = in_double(torch.sigmoid, answers)
        return ((likely >= self.low) & (likely < self.high)).any(dim=1)
