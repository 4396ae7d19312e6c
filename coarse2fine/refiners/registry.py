"""Kinds of refiners by name, as model files call them."""

from __future__ import annotations

from coarse2fine.plugins import Registry
from coarse2fine.refiners.detection import DetectionRefiner
from coarse2fine.refiners.novelty import NoveltyRefiner
from coarse2fine.refiners.protocol import Load

_KINDS: Registry[Load] = Registry("coarse2fine.refiners")


def register_refiner(kind: str, load: Load) -> None:
    """Let model files hold refiners of another kind.

    Parameters
    ----------
    kind : str
        The `kind` of such refiners, see `coarse2fine.refiners.protocol.Refiner`.
    load : callable
        From the arrays (mapping of str to ndarray) and the description (mapping of JSON values) in a model file, and
        the model's base, to the refiner: undoes its `arrays` and `describe`. Model files come from strangers: nothing
        in them must be executed.

    Notes
    -----
    A package registers without being imported through an entry point of the group ``coarse2fine.refiners``: its name
    is the kind, and its value a module that calls this function.
    """
    _KINDS.register(kind, load)


register_refiner(DetectionRefiner.kind, DetectionRefiner.load)
register_refiner(NoveltyRefiner.kind, NoveltyRefiner.load)


def find_refiner(kind: str) -> Load:
    """What loads refiners of a kind.

    Raises
    ------
    ValueError
        If no package here has that kind.
    """
    load = _KINDS.find(kind)
    if load is None:
        raise ValueError(f"no refiner of the kind {kind:.40} is registered here; install the package that has it")
    return load
