"""Storage of an expert's answers by the pixels of the tiles, so that no tile is run twice."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coarse2fine.experts.errors import ExpertError
from coarse2fine.experts.expert import Expert
from coarse2fine.models.candidates import Candidates

_SECONDS = 60.0


@dataclass(frozen=True)
class AnswerStore:
    """Answers of one expert in a database file.

    An answer is stored by the hash of the expert, the tile's pixels, and the edges of the image that it lies at.

    Parameters
    ----------
    path : Path
        Of the database; made with the first answer.
    identity : str
        Hash of the expert.
    """

    path: Path
    identity: str

    @classmethod
    def of(cls, expert: Expert, folder: Path) -> AnswerStore | None:
        """The store of an expert in a folder, which is made; None if nothing says that two experts are the same."""
        if not expert.sha256:
            return None
        identity = hashlib.sha256(json.dumps(expert.decisive(), sort_keys=True).encode()).hexdigest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExpertError(f"answers cannot be stored in {folder} ({error.strerror or error})") from error
        return cls(folder / f"answers-{identity[:16]}.sqlite", identity)

    def keys(
        self,
        pixels: NDArray[np.uint8],
        corners: NDArray[np.int64],
        fine_shape: tuple[int, int],
        cells: int,
        floor: float,
    ) -> list[bytes]:
        """Key of each tile.

        Parameters
        ----------
        pixels : ndarray, uint8, (n, side, side, 3)
        corners : ndarray, int64, (n, 2)
            Fine-grid index (y, x) of each tile's first fine cell.
        fine_shape : tuple of int
            Fine cells of the image.
        cells : int
            Fine cells along a side of a tile.
        floor : float
            Least score of a find.
        """
        last = np.array(fine_shape) - cells
        edges = np.concatenate([corners == 0, corners >= last], axis=1)
        start = hashlib.sha256(f"{self.identity} {floor!r}".encode())
        found = []
        for tile, edge in zip(pixels, edges, strict=True):
            digest = start.copy()
            digest.update(edge.tobytes() + np.ascontiguousarray(tile).tobytes())
            found.append(digest.digest())
        return found

    def load(self, keys: Sequence[bytes]) -> dict[bytes, Candidates]:
        """The stored answers, each as of a tile at (0, 0)."""
        if not self.path.exists():
            return {}
        with self._connected() as base:
            rows = [base.execute("SELECT answer FROM answers WHERE tile = ?", (key,)).fetchone() for key in keys]
        base.close()
        return {key: _unpacked(row[0]) for key, row in zip(keys, rows, strict=True) if row is not None}

    def store(self, answers: dict[bytes, Candidates]) -> None:
        """Add answers, each as of a tile at (0, 0)."""
        with self._connected() as base:
            base.executemany(
                "INSERT OR REPLACE INTO answers VALUES (?, ?)", [(key, _packed(each)) for key, each in answers.items()]
            )
        base.close()

    def _connected(self) -> sqlite3.Connection:
        try:
            base = sqlite3.connect(self.path, timeout=_SECONDS)
            base.execute("CREATE TABLE IF NOT EXISTS answers (tile BLOB PRIMARY KEY, answer BLOB) WITHOUT ROWID")
        except sqlite3.Error as error:
            raise ExpertError(f"stored answers cannot be used ({error}): delete {self.path}") from error
        return base


def moved(found: Candidates, cells: NDArray[np.int64]) -> Candidates:
    """Finds moved by whole fine cells (y, x)."""
    step = np.asarray(cells)
    return replace(
        found,
        cells=(found.cells + step).astype(np.int32),
        boxes=(found.boxes + np.tile(step, 2)).astype(np.float32),
        corners=(found.corners + step).astype(np.float32),
    )


def _packed(found: Candidates) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **vars(found))
    return stream.getvalue()


def _unpacked(text: bytes) -> Candidates:
    with np.load(io.BytesIO(text), allow_pickle=False) as file:
        return Candidates(**dict(file))
