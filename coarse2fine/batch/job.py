"""Jobs, which are sent to workers, and records, which are returned; both are small."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from coarse2fine._version import __version__
from coarse2fine.batch.inputs import Item
from coarse2fine.bundle import ModelSpec
from coarse2fine.config import Config
from coarse2fine.experts.again import ListedExperts
from coarse2fine.model import Model, load_model
from coarse2fine.models.errors import ModelError
from coarse2fine.remembered import open_for
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.storage.redact import identity, redact
from coarse2fine.tiling.storage.remote import is_url
from coarse2fine.tiling.value_range import check_range

Status = Literal["done", "damaged", "failed", "timeout", "killed", "waiting"]
"""Complete; complete except unreadable parts; an error; over the time limit; its worker died; not done yet."""

KEEP_FROM = 2**27
"""Least pixels of an image whose partial work (scan, refined pieces) is stored during the analysis."""

# Parameters that change speed, not results.
_NO_MATTER = ("batch_size",)
_ZARR_METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray", ".zmetadata")


@lru_cache(maxsize=4)
def loaded(spec: ModelSpec, experts: ListedExperts | None = None) -> Model:
    """The model, loaded once per process, with the experts that texts name.

    Raises
    ------
    ModelError
        If the file is missing or damaged, or was changed since the batch began; or if an expert cannot be made.
    """
    if ModelSpec.of(spec.path) != spec:
        raise ModelError(f"{spec.path} was changed while the batch ran; run the same command again")
    model = load_model(spec.path)
    return model if experts is None else model.with_expert(experts)


def model_of(job: Job) -> Model:
    """The job's model, with its experts and their stored answers if it has some; see `loaded`."""
    if job.experts and not all(isinstance(each, str) for _, each in job.experts):
        model = loaded(job.model).with_expert(job.experts)
    else:
        model = loaded(job.model, job.experts or None)
    return model if job.cache is None else model.with_cache(job.cache)


@dataclass(frozen=True)
class Opening:
    """Options for opening images.

    Parameters
    ----------
    mpp : float, optional
        Microns per pixel, instead of the file's.
    channels : int or sequence of int, optional
        Stored channels to read; by default those of the model's images.
    value_range : (float, float), optional
        Stored values that become black and white; by default those of the model's images.

    Raises
    ------
    ValueError
        If `mpp` is not positive, or `value_range` is no range.
    """

    mpp: float | None = None
    channels: int | Sequence[int] | None = None
    value_range: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.channels is not None:
            channels = (self.channels,) if isinstance(self.channels, int) else tuple(self.channels)
            object.__setattr__(self, "channels", channels)
        if self.mpp is not None and not 0 < self.mpp < float("inf"):
            raise ValueError(f"expected positive microns per pixel, got {self.mpp}")
        if self.value_range is not None:
            object.__setattr__(self, "value_range", check_range(self.value_range))


@dataclass(frozen=True)
class Job:
    """One image to analyse.

    Parameters
    ----------
    item : Item
    out : str
        Folder of the batch, which every worker must have access to.
    folder : str
        Folder of the results in it; empty if the results lie in `out` itself.
    model : ModelSpec
    config : Config
    opening : Opening
    key : str
        Hash of the input's identity, the model, the configuration and this version.
    run : str
        Name of the batch run; attempts are counted per run.
    threads : int
        Threads for arithmetic.
    time_limit : float, optional
        Seconds after which the worker is ended.
    keep_from : int
        Least pixels of an image whose partial work is stored.
    report : bool
        Whether to write a page with the results.
    experts : tuple of (str, str or Expert), optional
        The experts that the model runs, with their outputs; objects only in the process that made them.
    cache : str, optional
        Folder of the experts' stored answers.
    """

    item: Item
    out: str
    folder: str
    model: ModelSpec
    config: Config
    opening: Opening
    key: str
    run: str
    threads: int
    time_limit: float | None = None
    keep_from: int = KEEP_FROM
    report: bool = True
    experts: ListedExperts | None = None
    cache: str | None = None

    def open(self) -> Image:
        """Open the image with the job's options, or else as the model's images were opened.

        Raises
        ------
        ImageError
            If it cannot be opened.
        """
        return open_for(model_of(self), self.item.source, **asdict(self.opening))

    def record(self, status: Status, error: str = "", traceback: str = "", **more: Any) -> Record:
        """A record of the job's image."""
        return Record(self.item.name, self.item.source, status, error, traceback, **more)

    @property
    def target(self) -> Path:
        """Folder of the results."""
        return Path(self.out) / self.folder if self.folder else Path(self.out)

    @property
    def work(self) -> Path:
        """Folder of partial work, and of results until they are complete."""
        return Path(self.out) / ".batch" / (self.folder or "image") / self.key[:16]


@dataclass(frozen=True)
class Record:
    """The outcome of one image.

    Parameters
    ----------
    name : str
        Name of its results' folder.
    source : str
        Path or address; passwords and signatures are removed from it and from the texts.
    status : str
        See `Status`.
    error : str
        One line; empty without an error.
    traceback : str
        Traceback of the error, or stacks of the worker at its end.
    facts : mapping
        Figures of the result, as JSON values; the same in every run.
    seconds : float
        Duration in this run.
    fatal : bool
        Whether every other image would fail for the same reason.
    """

    name: str
    source: str
    status: Status
    error: str = ""
    traceback: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    fatal: bool = False

    def __post_init__(self) -> None:
        for name in ("source", "error", "traceback"):
            text = getattr(self, name)
            object.__setattr__(self, name, text if name == "source" and not is_url(text) else redact(text))

    @property
    def has_result(self) -> bool:
        """Whether results were written."""
        return self.status in {"done", "damaged"}

    def to_json(self) -> dict[str, Any]:
        """The record without what differs from run to run, as JSON values."""
        texts = {name: text for name in ("error", "traceback") if (text := getattr(self, name))}
        return {"name": self.name, "source": self.source, "status": self.status, **self.facts, **texts}


def key_of(item: Item, model: ModelSpec, config: Config, opening: Opening) -> str:
    """Hash of everything that a result depends on; a file is identified by name, size and time of change.

    An address is identified without its password and temporary signatures: see `identity`.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in _NO_MATTER}
    path = Path(item.source)
    known = [identity(item.source)] if is_url(item.source) else [path.name, *_stamps(path)]
    mask = None if item.mask is None else _content(item.mask)
    text = json.dumps([__version__, known, model.sha256, settings, asdict(opening), mask], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@lru_cache(maxsize=16)
def _content(path: str) -> str:
    """Hash of a mask's content, for a Zarr of all its files."""
    digest = hashlib.sha256()
    whole = Path(path)
    for file in sorted(whole.rglob("*")) if whole.is_dir() else [whole]:
        if file.is_file():
            digest.update(f"{file.relative_to(whole).as_posix()} {file.stat().st_size} ".encode())
            with file.open("rb") as stream:
                while part := stream.read(2**20):
                    digest.update(part)
    return digest.hexdigest()


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of a Zarr's metadata files; empty if there is none."""
    files = [path]
    if path.is_dir():
        files = sorted(p for n in _ZARR_METADATA for p in (path / n, *path.glob(f"*/{n}")))
    found = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        name = "" if file == path else file.relative_to(path).as_posix()
        found.append((name, status.st_size, status.st_mtime_ns))
    return found


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
