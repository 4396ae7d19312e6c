"""Experts of model files, made again from what the user gives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from coarse2fine.experts.errors import ExpertError
from coarse2fine.experts.expert import Expert, expert

GivenExpert = Expert | str
"""An expert as a user gives it again: itself, or its text."""

GivenExperts = GivenExpert | Sequence[GivenExpert] | Mapping[str, GivenExpert | Sequence[GivenExpert]]
"""The experts of a model as a user gives them again, in the order of the fit; those of several outputs by name."""

ListedExperts = tuple[tuple[str, GivenExpert], ...]
"""The same as pairs of output and expert; the output is empty if it was not named."""


def listed(given: GivenExperts | ListedExperts) -> ListedExperts:
    """Given experts as pairs of output and expert."""
    if isinstance(given, Mapping):
        return tuple((name, each) for name, some in given.items() for _, each in listed(some))
    if isinstance(given, Expert | str):
        return (("", given),)
    return tuple(each if isinstance(each, tuple) else ("", each) for each in given)


def all_again(known: Sequence[tuple[str, Expert]], given: GivenExperts | ListedExperts) -> list[Expert]:
    """The experts of a model file, with the calls of those that the user gives; see `again`.

    Parameters
    ----------
    known : sequence of (str, Expert)
        Each with the name of its output, empty if the model has no names.
    given : Expert, str, sequence or mapping of these
        All of them, by their outputs, or without names in the order of the fit.

    Raises
    ------
    ExpertError
        If it is another number of them, or outputs have other names.
    """
    each, names = listed(given), [name for name, _ in known]
    if any(name for name, _ in each):
        each = tuple(sorted(each, key=lambda pair: names.index(pair[0]) if pair[0] in names else len(names)))
        mismatch = [name for name, _ in each] != names
    else:
        mismatch = len(each) != len(known)
    if mismatch:
        wanted = ", ".join(repr(f"{name}={expert.name}" if name else expert.name) for name, expert in known)
        got = ", ".join(name or "one without a name" for name, _ in each) if any(n for n, _ in each) else len(each)
        raise ExpertError(f"expected all experts of the model in this order: {wanted}; got {got}")
    return [again(one, other) for (_, one), (_, other) in zip(known, each, strict=True)]


def again(known: Expert, given: Expert | str) -> Expert:
    """The expert of a model file, with the call of the one that the user gives.

    Parameters
    ----------
    known : Expert
        As the file describes it.
    given : Expert or str
        The same expert. A text may end with options as a JSON object, such as ``'onnx:unet.onnx {"layout": "nchw"}'``.
        Numbers are taken from the file if they are not given; other options could name code or files, which the user
        must do himself.

    Raises
    ------
    ExpertError
        If it has another hash, tile or labels than at fitting, or if options are missing.
    """
    if isinstance(given, str):
        given = _of_known(known, given)
    if known.sha256 and given.sha256 and known.sha256 != given.sha256:
        raise ExpertError(
            f"the expert {given.name} has the hash {given.sha256[:12]}, but the model was fitted with "
            f"{known.sha256[:12]} ({known.spec or 'an object'}): give the file it was fitted with, or fit again"
        )
    if given.mpp and given.mpp == known.mpp:
        given = replace(given, downsample=known.downsample)  # of the images that it was fitted on
    for name in ("kind", "tile", "context", "mpp", "downsample"):
        mine, theirs = getattr(known, name), getattr(given, name)
        if mine != theirs:
            raise ExpertError(
                f"the expert {given.name} has the {name} {theirs!r}, but the model was fitted with {mine!r}"
            )
    if [a.name for a in known.labels] != [b.name for b in given.labels]:
        raise ExpertError(
            f"the expert {given.name} has the labels {[b.name for b in given.labels]}, but the model was fitted with "
            f"{[a.name for a in known.labels]}"
        )
    return replace(known, call=given.call, module=given.module, interest=given.interest, batch=given.batch)


def _of_known(known: Expert, text: str) -> Expert:
    """The expert of a text, with what a model file says of it as far as that cannot name code or files."""
    spec, options = with_options(text)
    harmless = {name: value for name, value in known.options.items() if _numbers(value)}
    if missing := sorted(known.options.keys() - harmless.keys() - options.keys()):
        whole = replace(known, spec=spec, options={**known.options, **options}).text
        raise ExpertError(
            f"the model file sets {', '.join(missing)} of the expert, and a file may not choose what is loaded: if you "
            f"trust it, give all options, as {whole!r}"
        )
    options = harmless | options
    facts: dict[str, Any] = {
        "kind": known.kind,
        "tile": known.tile,
        "context": known.context,
        **({"mpp": known.mpp} if known.mpp else {"downsample": known.downsample}),
        "labels": [label.name for label in known.labels],
        "areas": known.labels[0].kind == "area",
        "confidence": known.confidence,
    }
    made = expert(spec, **(facts | options))
    return replace(made, batch=min(made.batch, known.batch))


def _numbers(value: Any) -> bool:
    """Whether a value is a number, or a list of numbers."""
    return isinstance(value, (int, float)) or (isinstance(value, list) and all(map(_numbers, value)))


def with_options(text: str) -> tuple[str, dict[str, Any]]:
    """A text without the options after it, and these.

    Raises
    ------
    ExpertError
        If they are no JSON object.
    """
    spec, brace, rest = text.partition(" {")
    if not brace:
        return text, {}
    try:
        return spec, dict(json.loads("{" + rest))
    except ValueError as error:
        raise ExpertError(
            f"expected options of the expert as a JSON object, got {brace[1:]}{rest} ({error})"
        ) from error
