"""Forecast of what a scan saves before an expert, from the tiles that were watched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

PAYS_FROM = 1.3
"""Least saving for which tiles are chosen; below it the expert runs everywhere."""

FEW_FINDS = 60
"""Finds below which a forecast is said to be uncertain."""

Interval = tuple[float, float, float]
"""Estimate, and the ends of its 90 % interval."""


@dataclass(frozen=True)
class Forecast:
    """What a scan is expected to save on images like those of the fit.

    Parameters
    ----------
    tiles, watched : int
        Tiles of the fit's images, and those on which the expert ran.
    finds : int
        Finds in the watched tiles, on which thresholds are set.
    with_finds : (float, float, float)
        Share of the tiles that hold a find: estimate and interval. An ideal choice costs no less.
    chosen : mapping of str to (float, float, float)
        Share of the tiles that are chosen, by the recall of the expert's own exhaustive finds.
    saving : mapping of str to (float, float, float)
        Factor by which the cost of scan and expert is lower than the expert's everywhere, by recall.
    scan_cost : float
        Cost of the scan as a share of the expert's everywhere.
    recall : float
        Recall of the default threshold.
    half_tile : float or None
        Cost of an ideal choice among tiles of half the side, as a share of the expert's everywhere at the present
        side; None if the expert does not say where finds lie.
    accuracy : (int, float, float) or None
        Annotated objects in the watched tiles, the share of them that the expert finds, and the share of its finds that
        are annotated; None without annotations.
    alternatives : mapping of str to (float, float)
        With alternatives to the expert: for each way to choose between them, the share of the expert's finds that it
        gives at most, and its saving at the default recall; 0 if it does not reach that.
    """

    tiles: int
    watched: int
    finds: int
    with_finds: Interval
    chosen: Mapping[str, Interval]
    saving: Mapping[str, Interval]
    scan_cost: float
    recall: float
    half_tile: float | None = None
    accuracy: tuple[int, float, float] | None = None
    alternatives: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def pays(self) -> bool:
        """Whether choosing tiles is expected to pay at the default recall."""
        return self.saving[f"{self.recall:g}"][0] >= PAYS_FROM

    def beside(self, share: float) -> str:
        """The forecast at the default recall beside what came.

        Parameters
        ----------
        share : float
            Cost of an analysis as a share of the expert's everywhere.
        """
        best, low, high = self.saving[f"{self.recall:g}"]
        return f"forecast: {best:.1f} times less ({low:.1f} to {high:.1f}) at {self.recall:.0%}; it was {1 / share:.1f}"

    def to_json(self) -> dict[str, Any]:
        """JSON values for a model file."""
        return asdict(self)

    @classmethod
    def from_json(cls, text: Mapping[str, Any]) -> Self:
        """The forecast of a model file."""
        tables = {name: {key: _interval(v) for key, v in dict(text[name]).items()} for name in ("chosen", "saving")}
        half, accuracy = text["half_tile"], text.get("accuracy")
        return cls(
            tiles=int(text["tiles"]),
            watched=int(text["watched"]),
            finds=int(text["finds"]),
            with_finds=_interval(text["with_finds"]),
            scan_cost=float(text["scan_cost"]),
            recall=float(text["recall"]),
            half_tile=None if half is None else float(half),
            accuracy=None if accuracy is None else (int(accuracy[0]), *_pair(accuracy[1:])),
            alternatives={name: _pair(pair) for name, pair in dict(text.get("alternatives", {})).items()},
            **tables,
        )

    def lines(self) -> list[str]:
        """The forecast in words."""
        share, low, high = self.with_finds
        said = [
            f"forecast from {self.finds:,} finds in {self.watched:,} of {self.tiles:,} tiles: {share:.2%} of the tiles "
            f"hold a find ({low:.2%} to {high:.2%})"
        ]
        said += [
            f"{float(recall):.0%} of the finds for {1 / best:.1%} of the cost: {best:.1f} times less "
            f"({worst:.1f} to {top:.1f})"
            for recall, (best, worst, top) in self.saving.items()
        ]
        if self.accuracy is not None:
            count, recall, precision = self.accuracy
            said.append(
                f"of {count:,} annotated objects in the watched tiles the expert finds {recall:.1%}; of its finds "
                f"{precision:.1%} are annotated"
            )
        if self.alternatives:
            each = "; ".join(_said(name, *figures) for name, figures in self.alternatives.items())
            said.append(f"choice between the experts at {self.recall:.0%}: {each}")
        if self.finds < FEW_FINDS:
            said.append(
                f"fewer than {FEW_FINDS} finds: recall and saving are uncertain; watch more tiles, or more images"
            )
        if not self.pays:
            said.append(
                f"no use here: below {PAYS_FROM} times less the expert runs everywhere, unless a budget or a number of "
                "cells is given"
            )
        if self.half_tile is not None and self.half_tile < _WORTH_HALVING * share:
            said.append(
                f"tiles of half the side would save more: an ideal choice would cost {self.half_tile:.2%} instead of "
                f"{share:.2%}"
            )
        return said


# Ratio of the ideal costs below which smaller tiles are suggested.
_WORTH_HALVING = 0.8


def _interval(values: Any) -> Interval:
    best, low, high = map(float, values)
    return best, low, high


def _pair(values: Any) -> tuple[float, float]:
    given, saving = map(float, values)
    return given, saving


def _said(name: str, given: float, saving: float) -> str:
    """One way to choose between experts, in words."""
    return f"{name} {saving:.1f} times less" if saving else f"{name} gives at most {given:.1%} of the finds"
