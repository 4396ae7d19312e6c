"""Damage: bytes, numbers in headers, and values in JSON; all of it follows from a seeded generator."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.seeds import Seed

_NUMBERS = (0, 1, 2, 7, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1)
_HEAD = 512


def damaged(seed: Seed, target: Path, rng: np.random.Generator) -> Path:
    """Write a damaged copy of a seed.

    Parameters
    ----------
    seed : Seed
    target : Path
        Folder to write into; what is there under the seed's name is replaced.
    rng : Generator
    """
    copy = target / seed.path.name
    if copy.is_dir():
        shutil.rmtree(copy)
    if seed.path.is_dir():
        shutil.copytree(seed.path, copy)
        files = sorted(p for p in copy.rglob("*") if p.is_file())
        texts = [p for p in files if p.name in ("zarr.json", ".zarray", ".zgroup", ".zattrs")]
        pool = texts if rng.random() < 0.7 else files
        _damage(pool[rng.integers(len(pool))], rng)
    else:
        shutil.copyfile(seed.path, copy)
        _damage(copy, rng)
    return copy


def _damage(path: Path, rng: np.random.Generator) -> None:
    content = path.read_bytes()
    if path.suffix == ".gz" and rng.random() < 0.7:
        path.write_bytes(gzip.compress(_text(gzip.decompress(content), rng), mtime=0))
    elif path.suffix == ".c2f" and rng.random() < 0.8:
        path.write_bytes(_model(content, rng))
    elif content[:1] in (b"{", b"[") and rng.random() < 0.8:
        path.write_bytes(_text(content, rng))
    else:
        for _ in range(int(rng.integers(1, 4))):
            content = _bytes(content, rng)
        path.write_bytes(content)


def _bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """One change of bytes, half of them in the head."""
    data = bytearray(content or b"\0")
    end = min(len(data), _HEAD) if rng.random() < 0.5 else len(data)
    at, way = int(rng.integers(end)), int(rng.integers(6))
    if way == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif way == 1:
        del data[at:]
    elif way == 2:
        size, order = int(rng.choice([2, 4, 8])), str(rng.choice(["little", "big"]))
        value = _NUMBERS[rng.integers(len(_NUMBERS))] % 256**size
        data[at : at + size] = value.to_bytes(size, order)
    elif way == 3:
        data[at : at + 16] = bytes(16)
    elif way == 4:
        data[at:at] = rng.bytes(int(rng.integers(1, 40)))
    else:
        length = int(rng.integers(1, 64))
        data[at:at] = data[at : at + length]
    return bytes(data)


def _text(content: bytes, rng: np.random.Generator) -> bytes:
    """JSON with one to three values exchanged, or keys lost; sometimes no JSON any more."""
    if rng.random() < 0.1:
        return _bytes(content, rng)
    value = json.loads(content)
    for _ in range(int(rng.integers(1, 4))):
        value = _exchanged(value, rng)
    return json.dumps(value).encode()


def _model(content: bytes, rng: np.random.Generator) -> bytes:
    """A model file with its table of tensors, or its description, changed."""
    (size,) = struct.unpack("<Q", content[:8])
    head, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    if rng.random() < 0.6:
        inner = json.loads(head["__metadata__"]["coarse2fine"])
        head["__metadata__"]["coarse2fine"] = json.dumps(_exchanged(inner, rng))
    else:
        head = _exchanged(head, rng)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    if rng.random() < 0.1:
        body = _bytes(body, rng)
    return struct.pack("<Q", len(text)) + text + body


def _exchanged(value: Any, rng: np.random.Generator) -> Any:
    """The same with one value, somewhere inside, lost or exchanged."""
    places = list(_places(value))
    if not places:
        return _odd(value, rng)
    holder, key = places[rng.integers(len(places))]
    way = rng.random()
    if way < 0.15:
        del holder[key]
    elif way < 0.25 and isinstance(holder, list):
        holder.insert(key, holder[key])
    else:
        holder[key] = _odd(holder[key], rng)
    return value


def _places(value: Any) -> Any:
    """Every place inside a JSON value: what holds it, and its key there."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _odd(value: Any, rng: np.random.Generator) -> Any:
    deep: Any = []
    for _ in range(int(rng.choice([3, 900]))):
        deep = [deep]
    number = int(_NUMBERS[rng.integers(len(_NUMBERS))])
    ways: list[Any] = [None, True, "", "../../x", "/dev/zero", "\x1b[31m\u202e", [], {}, {"name": [1]}, deep]
    ways += [number, -number, number + 0.5, 1e308, -1e39, float("nan"), float("inf"), 10**400, str(number), [value] * 3]
    if isinstance(value, str):
        ways += [value * 50, value[::-1], value.upper()]
    if isinstance(value, int | float) and not isinstance(value, bool):
        ways += [value * 1000, -value, value - 1]
    return ways[rng.integers(len(ways))]
