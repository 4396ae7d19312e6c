"""The fit of a page: one at a time, in another process, with progress, and cancelled at once."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from coarse2fine.tiling.writing.atomic import replacing_folder, sibling

Status = Literal["idle", "running", "done", "failed", "cancelled"]

_WORKER = "coarse2fine.annotate.fit_worker"
_PARTIAL = ".fit"
_GRACE = 5.0
_TOLD = 600


@dataclass(frozen=True)
class FitState:
    """How far a fit is.

    Parameters
    ----------
    status : {"idle", "running", "done", "failed", "cancelled"}
    number : int
        Fits begun so far.
    step : str
        What it is doing.
    share : float
        Share of the time that is over, 0 to 1.
    seconds_left : float or None
        None while unknown.
    message : str
        Cause of a failure, or warnings.
    """

    status: Status = "idle"
    number: int = 0
    step: str = ""
    share: float = 0.0
    seconds_left: float | None = None
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        """The state as JSON values."""
        return asdict(self)


class BusyError(Exception):
    """A fit is already running."""


class FitJob:
    """Fits in the background; safe to use from several threads.

    Parameters
    ----------
    folder : Path
        Where the model and its result are put, when they are complete.
    fitted : callable
        Called in another thread after each success.
    """

    def __init__(self, folder: Path, fitted: Callable[[], None]) -> None:
        self.folder = folder
        self._fitted = fitted
        self._lock = threading.Lock()
        self._state = FitState()
        self._process: subprocess.Popen[str] | None = None
        self._watcher: threading.Thread | None = None

    @property
    def state(self) -> FitState:
        """How far the current fit is, or how the last one ended."""
        with self._lock:
            return self._state

    def start(self, image: str, annotations: dict[str, Any], steps: int) -> FitState:
        """Begin a fit.

        Parameters
        ----------
        image : str
            Path or address.
        annotations : dict
            GeoJSON.
        steps : int
            Optimisation steps of each net.

        Raises
        ------
        BusyError
            If one is running.
        OSError
            If nothing can be written beside `folder`.
        """
        with self._lock:
            if self._state.status == "running":
                raise BusyError
            partial = sibling(self.folder, _PARTIAL)
            partial.mkdir()
            task = {"image": image, "annotations": annotations, "steps": steps}
            task |= {"folder": str(partial), "name": self.folder.stem}
            errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (the watcher closes it)
            self._process = subprocess.Popen(  # noqa: S603 (the command is fixed)
                [sys.executable, "-m", _WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
            )
            self._state = FitState("running", self._state.number + 1, "starting")
            self._watcher = threading.Thread(
                target=self._watch, args=(self._process, task, partial, errors), daemon=True
            )
            self._watcher.start()
            return self._state

    def cancel(self) -> FitState:
        """End the running fit; without one, nothing happens."""
        with self._lock:
            if self._state.status == "running":
                self._state = replace(self._state, status="cancelled", seconds_left=None)
                if self._process is not None:
                    self._process.kill()
            return self._state

    def close(self) -> None:
        """End the running fit and wait until its files are removed."""
        self.cancel()
        if self._watcher is not None:
            self._watcher.join(_GRACE)

    def _watch(self, process: subprocess.Popen[str], task: dict[str, Any], partial: Path, errors: IO[str]) -> None:
        ending: dict[str, Any] = {}
        with errors, process, contextlib.suppress(OSError):
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                told = json.loads(line)
                if "step" in told:
                    self._update(**told)
                else:
                    ending = told
            if process.wait() and not ending:
                errors.seek(0)
                last = (errors.read().strip().splitlines() or ["it was killed"])[-1]
                ending = {"failed": f"the fit ended early ({last}); annotate more places, then fit again"}
        self._end(ending, partial)
        shutil.rmtree(partial, ignore_errors=True)

    def _update(self, **values: Any) -> None:
        with self._lock:
            if self._state.status == "running":
                self._state = replace(self._state, **values)

    def _end(self, ending: dict[str, Any], partial: Path) -> None:
        with self._lock:
            if self._state.status != "running":
                return
        if not ending.get("done"):
            why = ending.get("failed", "the fit ended early")
            self._update(status="failed", message=why[:_TOLD], seconds_left=None)
            return
        try:
            with replacing_folder(self.folder) as target:
                partial.rename(target)
            self._fitted()
        except (OSError, ValueError) as error:
            self._update(status="failed", message=str(error)[:_TOLD], seconds_left=None)
            return
        notes = " ".join(ending.get("notes", ()))[:_TOLD]
        self._update(status="done", share=1.0, step="done", message=notes, seconds_left=None)
