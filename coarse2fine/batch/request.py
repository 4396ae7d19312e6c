"""The request of a batch, and the jobs that it is divided into."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from coarse2fine.batch.inputs import Item, sharded
from coarse2fine.batch.job import KEEP_FROM, Job, Opening, cores, key_of
from coarse2fine.bundle import ModelSpec
from coarse2fine.config import Config
from coarse2fine.experts.again import GivenExperts, ListedExperts, listed
from coarse2fine.experts.expert import Expert
from coarse2fine.experts.refiner import ExpertRefiner
from coarse2fine.model import Model
from coarse2fine.models.runtime import Runtime
from coarse2fine.paths import PathLike
from coarse2fine.tiling.storage.remote import is_url


@dataclass(frozen=True)
class Workers:
    """The workers of a batch.

    Parameters
    ----------
    workers : int, optional
        Processes on this machine; by default one per core, or a single one with an accelerator. 0 is this process
        alone, which a bad file may crash.
    scheduler : str, optional
        Address of a Dask scheduler instead, such as ``tcp://host:8786``; its workers must have access to the same
        files.
    shard : (int, int), optional
        (I, N): only the I-th of N equal parts of the batch, counted from 1.
    split : bool
        Whether a very large image is refined by all workers together.
    time_limit : float, optional
        Seconds that an image may take.
    memory_limit : float, optional
        Bytes that a process may take; by default an equal share of the machine's memory.

    Raises
    ------
    ValueError
        If a number is out of range, or parameters contradict each other.
    """

    workers: int | None = None
    scheduler: str | None = None
    shard: tuple[int, int] | None = None
    split: bool = False
    time_limit: float | None = None
    memory_limit: float | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be a number of processes, got {self.workers}")
        if self.workers is not None and self.scheduler is not None:
            raise ValueError("the workers of a scheduler are started elsewhere: give workers or a scheduler, not both")
        for name in ("time_limit", "memory_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.workers == 0 and (self.split or self.time_limit or self.memory_limit):
            raise ValueError("split, time_limit and memory_limit need workers: give at least 1")

    @property
    def here(self) -> bool:
        """Whether this process analyses everything, one image after another."""
        return self.workers == 0

    @property
    def name(self) -> str:
        """Name of the record of their outcomes."""
        return "batch" if self.shard is None else f"batch-{self.shard[0]}-of-{self.shard[1]}"

    def processes(self, images: int, config: Config) -> int:
        """Number of processes of a local cluster for a number of images."""
        if self.workers:
            return self.workers
        if Runtime.choose(config.device, config.precision).device.type != "cpu":
            return 1
        return cores() if self.split else min(cores(), images)

    def threads(self, images: int, config: Config) -> int:
        """Threads for arithmetic of each worker; 0 for a scheduler's own number."""
        if self.scheduler is not None:
            return 0
        return max(1, cores() // (1 if self.here else max(1, self.processes(images, config))))


@dataclass(frozen=True)
class BatchRequest:
    """Parameters of a batch.

    Parameters
    ----------
    items : sequence of Item
        The whole batch; `workers` may have a shard of it.
    out : Path
        Folder of the results.
    model : path, str or Model
        Model for items without one of their own.
    config : Config
    workers : Workers
    opening : Opening
    flat : bool
        Whether the results of a single item lie in `out` itself.
    report : bool
        Whether to write ``report.html`` for each image and for the batch.
    expert : Expert, str, or sequence or mapping of these, optional
        The experts that the model runs, see `analyze`; by default those that a model in memory has.
    cache : path, optional
        Folder of stored answers of the experts; by default that of a model in memory.
    """

    items: Sequence[Item]
    out: Path
    model: PathLike | Model
    config: Config = field(default_factory=Config)
    workers: Workers = field(default_factory=Workers)
    opening: Opening = field(default_factory=Opening)
    flat: bool = False
    report: bool = True
    expert: GivenExperts | None = None
    cache: PathLike | None = None

    def jobs(self) -> list[Job]:
        """The work on each item, in order.

        Raises
        ------
        ModelError
            If a model cannot be loaded.
        OSError
            If `out` cannot be written.
        ValueError
            If results would replace an image, or other processes cannot make the expert.
        """
        experts = self._sendable_experts()
        items, out = sharded(self.items, self.workers.shard), self.out.absolute()
        names = {item.model for item in items}
        specs = {name: _spec(self.model, out) if name is None else ModelSpec.of(name) for name in names}
        run, threads = uuid.uuid4().hex[:8], self.workers.threads(len(items), self.config)
        jobs = []
        for item in items:
            opening = self.opening if item.mpp is None else replace(self.opening, mpp=item.mpp)
            spec = specs[item.model]
            job = Job(
                item=item,
                out=str(out),
                folder="" if self.flat else item.name,
                model=spec,
                config=self.config,
                opening=opening,
                key=key_of(item, spec, self.config, opening),
                run=run,
                threads=threads,
                time_limit=self.workers.time_limit,
                keep_from=KEEP_FROM,
                report=self.report,
                experts=experts,
                cache=self._answers_folder(),
            )
            if not is_url(item.source) and job.target == Path(item.source).absolute():
                raise ValueError(
                    f"the results of {item.source} would replace the image; name another folder than {out}"
                )
            jobs.append(job)
        return jobs

    def _answers_folder(self) -> str | None:
        """Folder of stored answers, if there is one."""
        folder = self.cache
        if folder is None and isinstance(self.model, Model) and isinstance(self.model.refiner, ExpertRefiner):
            folder = self.model.refiner.cache
        return None if folder is None else str(Path(folder).absolute())

    def _sendable_experts(self) -> ListedExperts | None:
        """The experts as their texts, by which workers make them; objects if this process does all the work."""
        given: GivenExperts | ListedExperts | None = self.expert
        if given is None and isinstance(self.model, Model) and self.model.expert and self.model.expert.call:
            given = self.model.experts
        if given is None:
            return None
        every = listed(given)
        if self.workers.here or self.flat:
            return every
        return tuple((output, _text_of(each)) for output, each in every)


def _text_of(given: Expert | str) -> str:
    """Text from which other processes make an expert; ValueError if they cannot."""
    if isinstance(given, str):
        return given
    if not given.spec or (given.interest and "interest" not in given.options):
        raise ValueError(
            f"other processes cannot make the expert {given.name}, as it or its interest is an object of this one: "
            "give workers=0, or name it by a text, such as 'package.module:function'"
        )
    return given.text


def _spec(model: PathLike | Model, out: Path) -> ModelSpec:
    """Reference to a model file; a model in memory is stored beside the results, accessible to every worker."""
    if not isinstance(model, Model):
        return ModelSpec.of(model)
    folder = out / ".batch"
    folder.mkdir(parents=True, exist_ok=True)
    spec = ModelSpec.of(model.save(folder / f"{uuid.uuid4().hex}.c2f"))
    named = ModelSpec(str(folder / f"{spec.sha256[:16]}.c2f"), spec.sha256)
    Path(spec.path).replace(named.path)
    return named
