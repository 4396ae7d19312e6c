"""A fit in a process of its own: reads its task from standard input, tells its progress on standard output as JSON.

It ends, and removes what it has written so far, as soon as its standard input is closed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from coarse2fine.engine import analyze
from coarse2fine.fitting.fit import fit
from coarse2fine.model import Model
from coarse2fine.progress import Moment, listening
from coarse2fine.results.analysis import Analysis
from coarse2fine.results.json_file import write_json
from coarse2fine.tiling.opening import ImageSource

MODEL, RESULT, SUMMARY = "model.c2f", "result", "fit.json"
_FIT_SHARE = 0.85
"""Share of the time until the model is fitted; the rest analyses the image."""
_EVERY = 0.2
_LOWER, _LEAST = 0.5, 0.01
"""Factor on the model's threshold down to which finds are kept, because a person decides on them."""


class _Teller:
    """Sends at most one progress each `_EVERY` seconds."""

    def __init__(self) -> None:
        self._last = self._share = 0.0
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what libraries print goes to standard error

    def hear(self, moment: Moment) -> None:
        """Tell a progress, if the last was told long enough ago."""
        now = time.monotonic()
        if now - self._last < _EVERY and moment.done < moment.total:
            return
        self._last = now
        # The analysis that follows the fit does not know its steps.
        share = _FIT_SHARE if moment.share is None else _FIT_SHARE * moment.share
        # A step that was not expected lengthens the whole; a bar that goes back would be taken for a fault.
        self._share = max(self._share, share)
        self.tell(step=moment.step, share=self._share, seconds_left=moment.seconds_left)

    def tell(self, **values: Any) -> None:
        """Send values as a line of JSON."""
        self._stream.write(json.dumps(values) + "\n")
        self._stream.flush()


def main() -> int:
    """Fit, analyse, save; 0, or 1 if the annotations or the image are at fault."""
    task = json.loads(sys.stdin.readline())
    folder = Path(task["folder"])
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    teller = _Teller()
    try:
        with warnings.catch_warnings(record=True) as caught, listening(teller.hear):
            warnings.simplefilter("always", UserWarning)
            _work(task, folder)
    except (OSError, ValueError) as error:  # ImageError, ModelError and AnnotationError are ValueErrors
        teller.tell(failed=str(error))
        return 1
    notes = [str(each.message) for each in caught if each.category is UserWarning]
    teller.tell(done=True, notes=list(dict.fromkeys(notes)))
    return 0


def learn(
    image: ImageSource, annotations: dict[str, Any], *, steps: int, seed: int = 0, name: str = "model"
) -> tuple[Model, Analysis]:
    """Fit a model to one image, and analyse it with finds down to half the model's threshold, for a person to decide.

    Parameters
    ----------
    image : path, address or ndarray
    annotations : dict
        GeoJSON, see `coarse2fine.annotate.training.training_annotations`.
    steps : int
        Optimisation steps of each net.
    seed : int
    name : str
        Name of the model.

    Returns
    -------
    model : Model
    analysis : Analysis
        Its image is open.

    Raises
    ------
    AnnotationError, ImageError
        See `coarse2fine.fit`.
    """
    model = fit(image, annotations, steps=steps, specialists=None, seed=seed, name=name, progress=False)
    threshold = max(model.threshold * _LOWER, _LEAST)
    return model, analyze(image, model, threshold=threshold, audit=0.0)


def _work(task: dict[str, Any], folder: Path) -> None:
    started = time.monotonic()
    model, analysis = learn(task["image"], task["annotations"], steps=task["steps"], name=task["name"])
    with analysis:
        model.save(folder / MODEL)
        analysis.save(folder / RESULT)
    summary = {"threshold": model.threshold, "tau": model.tau, "steps": task["steps"]}
    write_json(folder / SUMMARY, {**summary, "seconds": round(time.monotonic() - started, 1)})


def _end_with_parent(folder: Path) -> None:
    """End the process when standard input is closed: its parent has ended or gives up."""
    sys.stdin.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
