"""Fits of the page: progress, result, finds to decide on, cancelling, and what is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from documents.browser import wait_for

from coarse2fine import load_model
from coarse2fine.annotate.server import AnnotateServer
from coarse2fine.fitting.forecast import OBJECTS
from tests.annotate.local import ask, boxed, send, serving, squares


def put(server: AnnotateServer, *features: dict[str, object]) -> None:
    revision = ask(server, "/annotations.json")[1]["revision"]
    status, _ = ask(server, "/annotations.json", {"revision": revision, "put": list(features), "delete": []})
    assert status == 200


def every_square() -> list[dict[str, object]]:
    return [boxed(x, y, x + 20, y + 20) for x, y in squares()]


def test_a_fit_leaves_a_model_and_its_result(fitted: AnnotateServer) -> None:
    folder = fitted.job.folder
    assert folder.name == "scene.fit"
    assert load_model(folder / "model.c2f").labels
    assert sorted(path.name for path in folder.parent.iterdir()) == ["scene.fit", "scene.geojson", "scene.png"]
    state = ask(fitted, "/state.json")[1]
    assert state["model"]
    assert state["scanned"]
    assert send(fitted, "GET", "/tiles/interest/0/0/0")[0] == 200
    with serving(folder.parent / "scene.png") as again:  # the next day
        assert ask(again, "/finds.json")[1]["finds"] == ask(fitted, "/finds.json")[1]["finds"]


def test_finds_are_asked_until_they_are_decided(fitted: AnnotateServer) -> None:
    told = ask(fitted, "/finds.json")[1]
    finds, threshold = told["finds"], told["threshold"]
    assert told["total"] >= len(finds)
    assert len(finds) > 3
    assert min(find["score"] for find in finds) >= threshold / 2 - 1e-4
    scores = np.array([find["score"] for find in finds]).clip(max=0.99)  # they come rounded
    odds = scores / (1 - scores)
    far = np.abs(np.log(odds / (threshold / (1 - threshold))))
    assert (np.diff(far) > -0.01).all()  # the least certain first
    first, second = finds[0], finds[-1]
    rejected = {"classification": {"name": second["label"]}, "coarse2fine": {"rejected": True}}
    put(fitted, boxed(*first["box"]), {**boxed(*second["box"]), "properties": rejected})
    left = [find["box"] for find in ask(fitted, "/finds.json")[1]["finds"]]
    assert first["box"] not in left
    assert second["box"] not in left
    assert len(finds) - 2 - len(left) < 6  # those that overlap them, and no others


def test_places_follow_the_model(fitted: AnnotateServer) -> None:
    found = ask(fitted, "/places.json?count=8")[1]["places"]
    assert {place["kind"] for place in found} >= {"find", "random"}
    finds = np.array([find["box"] for find in ask(fitted, "/finds.json")[1]["finds"]])
    x0, y0, x1, y1 = found[0]["box"]
    x, y = (finds[:, 0] + finds[:, 2]) / 2, (finds[:, 1] + finds[:, 3]) / 2
    assert ((x >= x0) & (x < x1) & (y >= y0) & (y < y1)).any()


def test_nothing_is_fitted_to_nothing(server: AnnotateServer) -> None:
    status, found = ask(server, "/fit.json", {"steps": 30})
    assert status == 400
    assert "nothing is drawn yet" in found["error"]
    for steps in (None, 19, 10_001, "many", 30.5):
        assert ask(server, "/fit.json", {"steps": steps})[0] == 400


@pytest.mark.slow
def test_a_fit_is_cancelled_and_leaves_nothing(server: AnnotateServer, picture: Path) -> None:
    put(server, *every_square())
    assert ask(server, "/fit.json", {"steps": 10_000})[0] == 202
    status, found = ask(server, "/fit.json", {"steps": 100})
    assert status == 409
    assert "cancel it first" in found["error"]
    wait_for(lambda: ask(server, "/state.json")[1]["fit"]["step"] == OBJECTS, "the first step", 200)
    assert ask(server, "/cancel.json", {})[1]["status"] == "cancelled"
    assert ask(server, "/cancel.json", {})[1]["status"] == "cancelled"
    wait_for(lambda: len(list(picture.parent.iterdir())) == 2, "the files of the fit to be removed")
    state = ask(server, "/state.json")[1]
    assert (state["fit"]["status"], state["model"]) == ("cancelled", False)
    assert len(ask(server, "/annotations.json")[1]["items"]) == 30


def test_a_fit_that_cannot_be_says_why(server: AnnotateServer, picture: Path) -> None:
    put(server, boxed(0, 0, 399, 299))  # an object as large as the image
    picture.unlink()
    assert ask(server, "/fit.json", {"steps": 20})[0] == 202
    wait_for(lambda: ask(server, "/state.json")[1]["fit"]["status"] != "running", "the failure", 200)
    fit = ask(server, "/state.json")[1]["fit"]
    assert fit["status"] == "failed"
    assert "scene.png" in fit["message"]
    wait_for(lambda: not list(picture.parent.glob(".*")), "the files of the fit to be removed")


@pytest.mark.slow
def test_a_fit_ends_with_its_server(picture: Path) -> None:
    """The worker's standard input is closed when the server is killed."""
    partial = picture.parent / ".partial.fit"
    partial.mkdir()
    annotations = {"type": "FeatureCollection", "features": every_square()}
    task = {"image": str(picture), "annotations": annotations, "steps": 10_000, "folder": str(partial), "name": "x"}
    with subprocess.Popen(
        [sys.executable, "-m", "coarse2fine.annotate.fit_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(json.dumps(task) + "\n")
        worker.stdin.flush()
        assert "step" in json.loads(worker.stdout.readline())
        started = time.monotonic()
        worker.stdin.close()
        assert worker.wait(60) == 1
        assert time.monotonic() - started < 30
    assert not partial.exists()


@pytest.mark.parametrize("damage", ["{", "{}", '{"threshold": "x"}'])
def test_a_damaged_fit_is_ignored(picture: Path, damage: str) -> None:
    folder = picture.with_name("scene.fit")
    folder.mkdir()
    (folder / "fit.json").write_text(damage, "utf-8")
    with serving(picture) as server:
        assert ask(server, "/state.json")[1]["model"] is False
