"""Training data of specialists: the frozen base's features and answer for each item, computed once and stored.

An item is a block of cells with one answer: a single cell of a scene, or a whole tile. Columns are trained from the
store alone; the base is not run again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from coarse2fine.models.base import Base
from coarse2fine.models.feature_maps import ColumnInputs
from coarse2fine.models.feature_tree import pooled

_ITEMS = "items.zarr"
_HOLDS = "items that specialists learn from"
_CHUNK = 512
Loss = Literal["softmax", "sigmoid", "squared"]
_TABLES = ("answers", "targets", "valid", "held", "group", "tiles")


@dataclass(frozen=True)
class Items:
    """Items in memory.

    Parameters
    ----------
    maps : tuple of Tensor, float16, (n, c, h, w)
        Maps of the base that columns read, its high-level map last.
    answers : Tensor, float32, (n, classes)
        Logits of the base, the mean over the item's cells.
    targets : Tensor, float32, (n, classes)
        1 for the item's classes.
    valid : Tensor, float32, (n, classes)
        0 if unknown. If classes exclude each other, an item counts only if all are known.
    held : ndarray, bool, (n,)
        Held-out items: they decide which columns are kept, and are not trained on.
    group : ndarray, int64, (n,)
        Items of one group are not independent: cells of one scene, tiles of one slide.
    tiles : ndarray, uint8, (n, h, w, c)
        Pixels of the item, for illustration.
    """

    maps: tuple[Tensor, ...]
    answers: Tensor
    targets: Tensor
    valid: Tensor
    held: NDArray[np.bool_]
    group: NDArray[np.int64]
    tiles: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.answers)

    def take(self, rows: NDArray[np.intp]) -> Items:
        """The items at `rows`."""
        at = torch.from_numpy(rows)
        return Items(
            tuple(m[at] for m in self.maps),
            self.answers[at],
            self.targets[at],
            self.valid[at],
            self.held[rows],
            self.group[rows],
            self.tiles[rows],
        )

    @classmethod
    def joined(cls, parts: Sequence[Items]) -> Items:
        """All items of all parts, in order."""
        return cls(
            tuple(torch.cat(maps) for maps in zip(*(p.maps for p in parts), strict=True)),
            torch.cat([p.answers for p in parts]),
            torch.cat([p.targets for p in parts]),
            torch.cat([p.valid for p in parts]),
            np.concatenate([p.held for p in parts]),
            np.concatenate([p.group for p in parts]),
            np.concatenate([p.tiles for p in parts]),
        )

    def answered(self, answers: Tensor) -> Items:
        """The same items with other initial answers."""
        return replace(self, answers=answers)

    @property
    def features(self) -> NDArray[np.float32]:
        """The mean of the high-level map, (n, c)."""
        return pooled(self.maps[-1])

    @classmethod
    def of(
        cls,
        base: Base,
        layout: ColumnInputs,
        x: Tensor,
        targets: Tensor,
        *,
        held: NDArray[np.bool_],
        group: NDArray[np.int64],
        tiles: NDArray[np.uint8],
        valid: Tensor | None = None,
    ) -> Items:
        """Run a base on whole tiles, each of which is an item.

        Parameters
        ----------
        base : Base
            In evaluation mode. Its answer has a channel for each class.
        layout : ColumnInputs
            Inputs of the columns that will be trained; columns with fewer stages read a part of them.
        x : Tensor, float32, (n, c, h, w)
            Tiles of `base.spec.input_size` of their cells plus `layout.border` cells on every side.
        targets, held, group, tiles
            See `Items`.
        valid : Tensor, float32, (n, classes), optional
            By default all classes are known.
        """
        with torch.inference_mode():
            features = base.features(x)
            maps = tuple(m.half().cpu() for m in layout.read(x, features))
            answers = layout.inner(base.head(features[-1])).float().mean(dim=(2, 3)).cpu()
        known = torch.ones_like(answers) if valid is None else valid
        return cls(maps, answers, targets.float(), known, held, group, tiles)


def loss_of(answers: Tensor, items: Items, *, exclusive: bool) -> Tensor:
    """Cross-entropy of each item, (n,); 0 if the class is unknown."""
    if exclusive:
        entropy = functional.cross_entropy(answers, items.targets.argmax(dim=1), reduction="none")
        return entropy * items.valid.amin(dim=1)
    entropy = functional.binary_cross_entropy_with_logits(answers, items.targets, reduction="none")
    return (entropy * items.valid).sum(dim=1)


def squared_of(answers: Tensor, items: Items) -> Tensor:
    """Mean squared error of each item, for answers that are numbers, (n,)."""
    return (answers - items.targets).square().mean(dim=1)


def wrong(answers: Tensor, items: Items, *, exclusive: bool) -> Tensor:
    """Whether each item's answer is wrong, (n,): its likeliest class, or any of its binary decisions."""
    if exclusive:
        return (answers.argmax(dim=1) != items.targets.argmax(dim=1)) & (items.valid.amin(dim=1) > 0)
    return (((answers > 0) != (items.targets > 0.5)) & (items.valid > 0)).any(dim=1)


class ItemStore:
    """A folder with items in Zarr arrays; the trained specialists' files are stored beside them.

    Parameters
    ----------
    folder : path
        Folder written by `ItemStore.write`.

    Attributes
    ----------
    folder : Path
    loss : {"softmax", "sigmoid", "squared"}
        Meaning of answers: one class an item, any number of classes, or numbers.
    name : str
        Identifies the data that the items were made from.

    Raises
    ------
    FileNotFoundError
        If the folder holds no complete store.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self._group: Any = zarr.open_group(self.folder / _ITEMS, mode="r")
            self.loss: Loss = cast("Loss", self._group.attrs["loss"])
            self.name = str(self._group.attrs["name"])
            self._maps = int(str(self._group.attrs["maps"]))
        except (FileNotFoundError, KeyError) as error:
            raise FileNotFoundError(f"{self.folder} holds no complete store of items; write it first") from error

    @classmethod
    def write(cls, folder: str | os.PathLike[str], parts: Iterable[Items], *, loss: Loss, name: str) -> ItemStore:
        """Write a stream of items; an incomplete store is overwritten.

        Parameters
        ----------
        folder : path
            Created if missing; items in it are replaced.
        parts : iterable of Items
            At least one, all of the same shapes.
        loss : {"softmax", "sigmoid", "squared"}
            Meaning of answers: one class an item, any number of classes, or numbers.
        name : str
            Identifies the data that the items are made from, such as a digest of the base and the data.

        Raises
        ------
        ValueError
            If there are no items.
        FileExistsError
            If another Zarr store or file is in its place.
        """
        path = Path(folder) / _ITEMS
        if path.exists() and not _is_ours(path):
            raise FileExistsError(f"{path} was not written by coarse2fine and is not overwritten; give another folder")
        group: Any = zarr.create_group(path, overwrite=True, attributes={"holds": _HOLDS})
        waiting: list[Items] = []
        for part in parts:
            waiting.append(part)
            if sum(map(len, waiting)) >= _CHUNK:
                rest = Items.joined(waiting)
                whole = len(rest) // _CHUNK * _CHUNK
                _append(group, rest.take(np.arange(whole)))
                waiting = [rest.take(np.arange(whole, len(rest)))]
        if not waiting or (not len(group) and not sum(map(len, waiting))):
            raise ValueError(f"there are no items to write into {folder}")
        _append(group, Items.joined(waiting))
        # Written last: a store without these attributes is incomplete.
        maps = sum(name.startswith("map") for name in group)
        group.attrs.update({"loss": loss, "name": name, "maps": maps})
        return cls(folder)

    def __len__(self) -> int:
        return int(self._group["answers"].shape[0])

    def table(self, name: str) -> NDArray[Any]:
        """One of ``answers``, ``targets``, ``valid``, ``held``, ``group``, ``tiles`` of all items."""
        return np.asarray(self._group[name][:])

    def read(self, rows: NDArray[np.intp] | None = None, *, last: int | None = None) -> Items:
        """Items in memory.

        Parameters
        ----------
        rows : ndarray, int, optional
            Rows to read, in increasing order; by default all.
        last : int, optional
            Read only this many maps, counted from the high-level one; by default all.
        """
        chosen = slice(None) if rows is None else rows

        def held(name: str) -> Any:
            return self._group[name].oindex[chosen]

        first = self._maps - (last or self._maps)
        maps = tuple(torch.from_numpy(held(f"map{i}")) for i in range(first, self._maps))
        answers, targets, valid = (torch.from_numpy(held(name)) for name in ("answers", "targets", "valid"))
        return Items(maps, answers, targets, valid, held("held"), held("group"), held("tiles"))


def _is_ours(path: Path) -> bool:
    """Whether a store was written by `ItemStore.write`, even in part."""
    try:
        return zarr.open_group(path, mode="r").attrs.get("holds") == _HOLDS
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _append(group: Any, items: Items) -> None:
    tables = {f"map{i}": m.numpy() for i, m in enumerate(items.maps)}
    for name in _TABLES:
        tables[name] = np.asarray(getattr(items, name))
    for name, values in tables.items():
        if name not in group:
            shape = (0, *values.shape[1:])
            # Uncompressed: read many times, and compression saves little.
            chunks = (_CHUNK, *values.shape[1:])
            group.create_array(name, shape=shape, chunks=chunks, dtype=values.dtype, compressors=None)
        if len(values):
            group[name].append(values)
