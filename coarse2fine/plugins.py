"""Registry for parts that other packages add, by a call or by an entry point that is loaded when its name is needed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Generic, TypeVar

Part = TypeVar("Part")


class Registry(Generic[Part]):
    """Parts of one kind by name.

    Parameters
    ----------
    group : str
        Group of entry points. Each names a module that registers a part when it is imported.
    homes : mapping of str to str, optional
        Modules of this package that register a part when they are imported, by its name.
    """

    def __init__(self, group: str, homes: Mapping[str, str] = MappingProxyType({})) -> None:
        self._group = group
        self._homes = homes
        self._parts: dict[str, Part] = {}

    def register(self, name: str, part: Part) -> None:
        """Add a part; an earlier one of the same name is replaced."""
        self._parts[name] = part

    def find(self, name: str) -> Part | None:
        """The part with a name; None if no installed package has it."""
        if name not in self._parts:
            if name in self._homes:
                import_module(self._homes[name])
            for point in entry_points(group=self._group, name=name):
                point.load()
        return self._parts.get(name)
