"""What to call the kind of items that a specialist gets: its commonest classes."""

from __future__ import annotations

from collections.abc import Mapping

_NAMED, _LEAST_SHARE = 3, 0.05


def commonest(weights: Mapping[str, float]) -> list[str]:
    """The three commonest groups of classes, by their first word, with their shares.

    Classes such as "Greek alpha" and "Greek beta" are of one group, unless there is no other. The three commonest
    classes if no group has a twentieth.

    Parameters
    ----------
    weights : mapping of str to float
        Number, or share, of each class.
    """
    groups: dict[str, float] = {}
    for label, weight in weights.items():
        name = label.partition(" ")[0] or label
        groups[name] = groups.get(name, 0.0) + weight
    named = groups if len(groups) > 1 else weights
    whole = max(sum(weights.values()), 1e-12)
    shown = [f"{n} {named[n] / whole:.0%}" for n in _largest(named) if named[n] / whole >= _LEAST_SHARE]
    return shown or _largest(weights)


def _largest(weights: Mapping[str, float]) -> list[str]:
    return sorted(weights, key=lambda name: -weights[name])[:_NAMED]
