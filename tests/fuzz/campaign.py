"""Many damaged inputs, each read in a process with limits: ``python -m tests.fuzz.campaign --count 5000``."""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.mutations import damaged
from tests.fuzz.seeds import Seed, make_seeds

SECONDS, MEGABYTES = 20.0, 1536.0
"""Limits for one input: time, and what memory may grow by."""
BAD = ("fault", "hang", "crash", "memory", "noise")
"""Outcomes that nobody may see."""


@dataclass(frozen=True)
class Result:
    """What became of one damaged input.

    Parameters
    ----------
    number : int
        With the campaign's seed it makes the input again.
    seed : Seed
    outcome : str
        "read" (as far as it goes), "refused" (in our words, with the file's name), "differs" (another reader reads
        something else); or one of `BAD`: another error, no answer in time, the process died, too much memory, text on
        standard error.
    detail : str
    seconds, megabytes : float
    """

    number: int
    seed: Seed
    outcome: str
    detail: str
    seconds: float
    megabytes: float


class _Worker:
    """A process that reads inputs, replaced if it dies or hangs."""

    def __init__(self, folder: Path) -> None:
        self._noise = (folder / "stderr").open("w+b")
        self._process: subprocess.Popen[str] | None = None

    def ask(self, kind: str, path: Path) -> dict[str, Any]:
        """What the worker says of an input."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        heard = self._noise.seek(0, os.SEEK_END)
        try:
            process.stdin.write(json.dumps({"kind": kind, "path": str(path)}) + "\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], SECONDS)[0]:
                self.stop()
                return {"outcome": "hang", "detail": "", "seconds": SECONDS, "megabytes": 0.0}
            answer: dict[str, Any] = json.loads(process.stdout.readline())
        except (OSError, ValueError):
            code = process.wait()
            self.stop()
            return {"outcome": "crash", "detail": f"exit status {code}", "seconds": 0.0, "megabytes": 0.0}
        if answer["megabytes"] > MEGABYTES:
            answer["outcome"] = "memory"
        self._noise.seek(heard)
        if noise := self._noise.read():
            answer |= {"outcome": "noise", "detail": noise.decode("utf-8", "replace")[:300]}
        return answer

    def _start(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "tests.fuzz.worker"]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._noise, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it is ready, however long it took to begin
        return self._process

    def close(self) -> None:
        """End the process for good."""
        self.stop()
        self._noise.close()

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def run(count: int, seed: int = 0, only: str = "") -> Iterator[Result]:
    """Damage and read so many inputs, each kind in turn.

    Parameters
    ----------
    count : int
    seed : int
        The same seed gives the same inputs.
    only : str
        Part of the names of the formats to try.
    """
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "seeds").mkdir()
        (folder / "inputs").mkdir()
        seeds = [each for each in make_seeds(folder / "seeds") if only in each.name]
        worker = _Worker(folder)
        try:
            for number in range(count):
                chosen = seeds[number % len(seeds)]
                path = damaged(chosen, folder / "inputs", np.random.default_rng((seed, number)))
                yield Result(number, chosen, **worker.ask(chosen.kind, path))
        finally:
            worker.close()


def table(results: list[Result]) -> str:
    """Outcomes by format, as text."""
    names = ("read", "refused", "differs", *BAD)
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for each in results:
        rows[each.seed.name][each.outcome] += 1
        rows["all"][each.outcome] += 1
    lines = [f"{'':<18}" + "".join(f"{name:>9}" for name in names) + f"{'slowest':>10}{'memory':>9}"]
    for name, counts in sorted(rows.items(), key=lambda row: (row[0] == "all", row[0])):
        mine = [r for r in results if name in (r.seed.name, "all")]
        slowest, largest = max(r.seconds for r in mine), max(r.megabytes for r in mine)
        lines.append(
            f"{name:<18}" + "".join(f"{counts[n]:>9,}" for n in names) + f"{slowest:>8.2f} s{largest:>6.0f} MB"
        )
    return "\n".join(lines)


def main() -> int:
    """Run a campaign, and print its table and what nobody may see."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the names of the formats to try")
    parsed = parser.parse_args()
    results = []
    for result in run(parsed.count, parsed.seed, parsed.only):
        results.append(result)
        if result.outcome in (*BAD, "differs"):
            print(f"{result.number} {result.seed.name}: {result.outcome}: {result.detail}", flush=True)
    print(table(results))
    return int(any(result.outcome in BAD for result in results))


if __name__ == "__main__":
    sys.exit(main())
