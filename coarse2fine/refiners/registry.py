"""Registry of refiners by the name of their kind in model files."""

from __future__ import annotations

from coarse2fine.plugins import Registry
from coarse2fine.refiners.detection import DetectionRefiner
from coarse2fine.refiners.novelty import NoveltyRefiner
from coarse2fine.refiners.protocol import Load

_KINDS: Registry[Load] = Registry("coarse2fine.refiners")


def register_refiner(kind: str, load: Load) -> None:
    """Register another kind of refiner for model files.

    Parameters
    ----------
    kind : str
        Its `kind`, see `coarse2fine.refiners.protocol.Refiner`.
    load : callable
        Takes the arrays (mapping of str to ndarray) and the description (mapping of JSON values) in a model file, and
        the model's base; returns the refiner. It is the inverse of `arrays` and `describe`. Model files are untrusted:
        nothing in them may be executed.

    Notes
    -----
    A package that its user does not import registers through an entry point of the group ``coarse2fine.refiners``: the
    entry point's name is the kind, its value a module that calls this function.

    Raises
    ------
    ValueError
        If the kind is not a text, or empty.
    TypeError
        If `load` cannot be called.
    """
    if not callable(load):
        raise TypeError(f"expected a function load(arrays, text, base), got {load!r:.60}")
    if not isinstance(kind, str) or not kind:
        raise ValueError(f"expected the name of a kind of refiner, got {kind!r}")
    _KINDS.register(kind, load)


register_refiner(DetectionRefiner.kind, DetectionRefiner.load)
register_refiner(NoveltyRefiner.kind, NoveltyRefiner.load)


def find_refiner(kind: str) -> Load:
    """The function that loads refiners of a kind.

    Raises
    ------
    ValueError
        If no installed package has that kind.
    """
    load = _KINDS.find(kind)
    if load is None:
        raise ValueError(f"no refiner of the kind {kind:.40} is registered here; install the package that has it")
    return load
