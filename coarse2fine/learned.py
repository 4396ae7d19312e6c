"""What a model was fitted on, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coarse2fine.terminal import printable

_NAMED, _UNNAMED = 3, "array"
_MOST, _LONGEST = 1e15, 60


def learned_from(provenance: Mapping[str, Any], *, scenes_only: bool = False) -> list[str]:
    """Lines of a printed model: its scenes and objects, how well it did on held-out parts, and the recall it is set to.

    Parameters
    ----------
    provenance : mapping
        Of the model, perhaps from a stranger's file: what is missing or of another type is left out.
    scenes_only : bool
        Whether to leave out its objects and figures, which are those of one band of several.
    """
    if scenes_only:
        provenance = {"scenes": provenance.get("scenes")}
    lines = [_scenes(provenance)]
    f1, recall = (_number(provenance, key) for key in ("f1_held_back", "recall_target"))
    said = [] if f1 is None else [f"F1 {f1:.2f} on parts that were held out"]
    share = _number(provenance, "cost_share")
    paid = "" if share is None else f" for {share:.1%} of its cost on these scenes"
    said += [] if recall is None else [f"set to find {recall:.1%} of what refining everything finds{paid}"]
    said += _by(provenance)
    return [line for line in (*lines, ", ".join(said)) if line]


def _by(provenance: Mapping[str, Any]) -> list[str]:
    """The finds that the recall of a scan rests on."""
    known = provenance.get("finds")
    numbers = [_number({"finds": each}, "finds") for each in known] if isinstance(known, list) else []
    if len(numbers) != 2 or None in numbers:
        return []
    held, count = numbers
    return [f"by {count:,.0f} finds, {held:,.0f} of them held out"]


def _scenes(provenance: Mapping[str, Any]) -> str:
    scenes, images = provenance.get("scenes"), _number(provenance, "images")
    if isinstance(scenes, Sequence) and not isinstance(scenes, str):
        names = list(dict.fromkeys(str(each)[:_LONGEST] for each in scenes if each != _UNNAMED))
        more = ", ..." if len(names) > _NAMED else ""
        shown = f" ({', '.join(names[:_NAMED])}{more})" if names else ""
        count, word = len(scenes), "scene" if len(scenes) == 1 else "scenes"
    elif images is not None:
        count, word, shown = int(images), "image" if int(images) == 1 else "images", ""
    else:
        return ""
    objects, size = _number(provenance, "objects"), _number(provenance, "median_size")
    what = "" if not objects else f": {objects:,.0f} annotated objects"
    what += f", half of them above {size:,.0f} px" if what and size is not None else ""
    return printable(f"fitted on {count:,} {word}{shown}{what}")


def _number(provenance: Mapping[str, Any], key: str) -> float | None:
    found = provenance.get(key)
    if not isinstance(found, int | float) or isinstance(found, bool):
        return None
    return float(found) if 0 <= found < _MOST else None
