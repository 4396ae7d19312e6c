"""The page in a browser: what is drawn is saved, undone, merged and loaded again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documents.browser import CHROMIUM, Browser, wait_for

from coarse2fine.annotate.server import AnnotateServer
from coarse2fine.annotations.read import read_annotations
from tests.annotate.local import ask, boxed, viewing

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

# The picture of 400 x 300 pixels fills the stage, 972 pixels wide and 800 high.
SCALE = 972 / 400
TOP = (800 - 300 * SCALE) / 2


def at(x: float, y: float) -> tuple[float, float]:
    """Place on the screen of a pixel of the picture."""
    return x * SCALE, y * SCALE + TOP


@pytest.fixture
def browser(server: AnnotateServer, tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as made:
        made.open(server.url)
        yield made
        assert made.problems == []


def saved(browser: Browser, server: AnnotateServer) -> list[Any]:
    """Annotations on disk once the page says that they are."""
    browser.until("document.getElementById('saved').textContent.startsWith('Saved in ')")
    return list(read_annotations(server.store.path).objects) if server.store.path.exists() else []


def test_shapes_are_drawn_saved_and_loaded_again(browser: Browser, server: AnnotateServer) -> None:
    browser.press("b")
    browser.mouse(at(100, 100), at(120, 130), at(160, 150))
    browser.press("2")
    browser.press("p")
    browser.mouse(at(200, 200))
    browser.press("g")
    for corner in ((220, 60), (280, 60), (280, 120)):
        browser.mouse(at(*corner))
    browser.press("Enter")
    browser.press("k")
    browser.mouse(at(60, 220), at(90, 220), at(120, 230))
    wait_for(lambda: len(saved(browser, server)) == 4, "four annotations")
    box, point, polygon, area = saved(browser, server)
    assert [each.label for each in (box, point, polygon, area)] == ["cell", "dust", "dust", "dust"]
    assert box.full_bounds == pytest.approx((100, 100, 150, 160), abs=1)
    assert box.is_box
    assert (point.geometry.y, point.geometry.x) == pytest.approx((200, 200), abs=1)
    assert polygon.geometry.area == pytest.approx(60 * 60 / 2, rel=0.05)
    assert not area.is_box
    _, x0, _, x1 = area.full_bounds
    assert x0 < 60
    assert x1 > 120
    browser.open(server.url)
    assert browser.text("itemCount") == "4 drawn, 0 rejected"


def test_undo_redo_and_delete(browser: Browser, server: AnnotateServer) -> None:
    browser.press("b")
    for x in (50, 150, 250):
        browser.mouse(at(x, 100), at(x + 40, 140))
    browser.press("z", control=True)
    browser.press("z", control=True)
    wait_for(lambda: len(saved(browser, server)) == 1, "one box")
    browser.press("y", control=True)
    wait_for(lambda: len(saved(browser, server)) == 2, "two boxes")
    browser.press("v")
    browser.mouse(at(70, 120))
    browser.press("2")  # the class of what is selected
    wait_for(lambda: [a.label for a in saved(browser, server)] == ["dust", "cell"], "the other class")
    browser.press("Delete")
    wait_for(lambda: len(saved(browser, server)) == 1, "the deletion")
    for _ in range(9):
        browser.press("z", control=True)
    wait_for(lambda: saved(browser, server) == [], "everything undone")


def test_a_selected_box_is_moved_and_reshaped(browser: Browser, server: AnnotateServer) -> None:
    browser.press("b")
    browser.mouse(at(100, 100), at(160, 140))
    browser.press("v")
    browser.mouse(at(130, 120))
    browser.mouse(at(130, 120), at(140, 125), at(150, 130))
    wait_for(lambda: saved(browser, server)[0].full_bounds == pytest.approx((110, 120, 150, 180), abs=1.5), "the move")
    browser.mouse(at(180, 150), at(200, 190), at(220, 200))
    wait_for(lambda: saved(browser, server)[0].full_bounds == pytest.approx((110, 120, 200, 220), abs=1.5), "the size")


def test_two_tabs_lose_nothing(browser: Browser, server: AnnotateServer, tmp_path: Path) -> None:
    with Browser(tmp_path / "other") as other:
        other.open(server.url)
        for page, x in ((browser, 50), (other, 120), (browser, 190), (other, 260)):
            page.press("b")
            page.mouse(at(x, 100), at(x + 40, 140))
        wait_for(lambda: len(saved(browser, server)) == 4, "the boxes of both")
        for page in (browser, other):
            page.until("document.getElementById('itemCount').textContent === '4 drawn, 0 rejected'")
        # A refusal of a stale save is shown as an error in the log, and is part of the plan.
        browser.problems[:] = [each for each in browser.problems if "409" not in each]
        assert [each for each in other.problems if "409" not in each] == []


def test_changes_of_another_program_are_merged(browser: Browser, server: AnnotateServer) -> None:
    payload = {"type": "FeatureCollection", "features": [boxed(5, 5, 25, 25, "<i>other</i>")]}
    server.store.path.write_text(json.dumps(payload), "utf-8")
    browser.press("b")
    browser.mouse(at(100, 100), at(140, 140))
    wait_for(lambda: {a.label for a in saved(browser, server)} == {"cell", "<i>other</i>"}, "both")
    browser.until("document.getElementById('classes').textContent.includes('<i>other</i>')")
    browser.problems[:] = [each for each in browser.problems if "409" not in each]


def test_a_damaged_file_is_told_and_mended(browser: Browser, server: AnnotateServer) -> None:
    server.store.path.write_text("half a fi", "utf-8")
    browser.press("b")
    browser.mouse(at(100, 100), at(140, 140))
    browser.until("document.getElementById('saved').textContent.includes('is not JSON')")
    server.store.path.write_text('{"type": "FeatureCollection", "features": []}', "utf-8")
    wait_for(lambda: len(saved(browser, server)) == 1, "the box after the file was mended")
    browser.problems.clear()  # the log tells of the refusals


def test_keys_zoom_wherever_the_focus_is(browser: Browser, server: AnnotateServer) -> None:
    whole = browser.text("scale")
    browser.value("document.getElementById('in').focus()")
    browser.press("+")
    browser.until(f"document.getElementById('scale').textContent !== {json.dumps(whole)}")
    browser.press("0")
    browser.until(f"document.getElementById('scale').textContent === {json.dumps(whole)}")
    browser.press("-")
    browser.until(f"document.getElementById('scale').textContent !== {json.dumps(whole)}")


def test_places_are_suggested_and_completed(browser: Browser, server: AnnotateServer) -> None:
    browser.press("s")
    browser.until("!document.getElementById('complete').disabled")
    browser.press("d")
    wait_for(server.store.path.exists, "the place")
    saved(browser, server)
    assert len(read_annotations(server.store.path).regions) == 1
    assert "Learns from 1 place where all is drawn" in browser.text("scope")
    browser.until("document.getElementById('suggestion').textContent.startsWith('1 place done. Here: ')")


def test_a_server_that_is_gone_is_told(picture: Path, tmp_path: Path) -> None:
    with viewing(picture) as (running, url), Browser(tmp_path / "profile") as browser:
        browser.open(url)
        running.kill()
        browser.press("b")
        browser.mouse(at(100, 100), at(140, 140))
        browser.until("document.getElementById('saved').className === 'bad'")
        assert "erver does not answer" in browser.text("saved")
        browser.until("document.getElementById('saved').textContent.endsWith('1 change is not saved.')")


def test_finds_are_decided_by_keys(fitted: AnnotateServer, tmp_path: Path) -> None:
    count = len(ask(fitted, "/finds.json")[1]["finds"])
    assert count > 2
    with Browser(tmp_path / "profile") as browser:
        browser.open(fitted.url)
        browser.until(f"document.getElementById('findCount').textContent === '{count}'")
        before = len(read_annotations(fitted.store.path).objects)
        browser.press("n")
        browser.press("a")
        browser.press("x")
        browser.press("x")
        browser.press("z", control=True)
        browser.until("document.getElementById('itemCount').textContent.endsWith(', 1 rejected')")
        wait_for(lambda: len(saved(browser, fitted)) == before + 1, "the find that was accepted")
        browser.open(fitted.url)
        assert browser.text("itemCount").endswith(", 1 rejected")
        browser.click("#interest")
        assert browser.problems == []


def test_finds_of_a_place_are_accepted_with_it(fitted: AnnotateServer, tmp_path: Path) -> None:
    said = "document.getElementById('suggestion').textContent"
    with Browser(tmp_path / "profile") as browser:
        browser.open(fitted.url)
        browser.until("document.getElementById('findCount').textContent !== ''")
        before = read_annotations(fitted.store.path)
        for _ in range(12):  # to a place that holds finds
            browser.value("document.getElementById('suggestion').textContent = ''")
            browser.press("s")
            browser.until(f"{said}.includes('Here: ')")
            if found := re.search(r"D accepts the other (?:(\d+) )?finds? in it", browser.text("suggestion")):
                break
        assert found is not None
        browser.press("d")
        wait_for(lambda: len(read_annotations(fitted.store.path).regions) == len(before.regions) + 1, "the place")
        after = read_annotations(fitted.store.path)
        assert len(after.objects) == len(before.objects) + int(found.group(1) or 1)
        # One step back takes the place and its finds away.
        browser.press("z", control=True)
        wait_for(lambda: len(read_annotations(fitted.store.path).regions) == len(before.regions), "the step back")
        assert len(read_annotations(fitted.store.path).objects) == len(before.objects)
        assert browser.problems == []


def test_decisions_of_another_tab_are_seen(fitted: AnnotateServer, tmp_path: Path) -> None:
    with Browser(tmp_path / "one") as one, Browser(tmp_path / "two") as two:
        count = len(ask(fitted, "/finds.json")[1]["finds"])
        for page in (one, two):
            page.open(fitted.url)
            page.until(f"document.getElementById('findCount').textContent === '{count}'")
        one.press("n")
        one.press("x")
        two.until(f"document.getElementById('findCount').textContent === '{count - 1}'")
        two.press("n")
        two.press("x")
        for page in (one, two):
            page.until(f"document.getElementById('findCount').textContent === '{count - 2}'")


def test_few_objects_are_told_of(browser: Browser, server: AnnotateServer) -> None:
    assert "rough model" not in browser.text("scope")
    browser.press("b")
    browser.mouse(at(100, 100), at(140, 140))
    wait_for(lambda: len(saved(browser, server)) == 1, "the box")
    assert "Only 1 object so far: expect a rough model" in browser.text("scope")


def test_a_fit_ends_with_its_server(picture: Path, tmp_path: Path) -> None:
    with viewing(picture) as (running, url), Browser(tmp_path / "profile") as browser:
        browser.open(url)
        browser.press("b")
        for x in (20, 80, 140):
            browser.mouse(at(x, 140), at(x + 20, 160))
        browser.until("document.getElementById('saved').textContent.startsWith('Saved')")
        browser.click("#fit")
        browser.until("!document.getElementById('progress').hidden")
        running.terminate()
        browser.until("document.getElementById('progress').hidden && document.getElementById('cancel').hidden")


def test_a_fit_is_begun_and_cancelled(browser: Browser, server: AnnotateServer) -> None:
    browser.click("#fit")
    browser.until("document.getElementById('fitMessage').textContent.includes('nothing is drawn yet')")
    browser.problems.clear()  # the log tells of the refusal
    browser.press("b")
    for x in (20, 80, 140):
        browser.mouse(at(x, 140), at(x + 20, 160))
    wait_for(lambda: len(saved(browser, server)) == 3, "three boxes")
    browser.click("#fit")
    browser.until("!document.getElementById('progress').hidden")
    browser.click("#cancel")
    browser.until("document.getElementById('fitMessage').textContent === 'The fit was cancelled.'")
    wait_for(lambda: len(list(server.store.path.parent.iterdir())) == 2, "the files of the fit to be removed")


@pytest.mark.parametrize(("width", "touch"), [(1280, False), (400, True)])
def test_nothing_hides_another(server: AnnotateServer, tmp_path: Path, width: int, touch: bool) -> None:
    with Browser(tmp_path / "profile", width, 800, touch=touch) as browser:
        browser.open(server.url)
        names = "#tools button, #draw button, #fold"
        boxes = browser.value(
            f"[...document.querySelectorAll('{names}')].map(e => e.getBoundingClientRect())"
            ".map(b => [b.left, b.top, b.right, b.bottom])"
        )
        assert len(boxes) == 13
        for i, (x0, y0, x1, y1) in enumerate(boxes):
            assert 0 <= x0 < x1 <= width
            assert min(x1 - x0, y1 - y0) >= (40 if touch else 32)
            for a0, b0, a1, b1 in boxes[:i]:
                assert min(x1, a1) - max(x0, a0) <= 0.5 or min(y1, b1) - max(y0, b0) <= 0.5
        assert browser.value("document.documentElement.scrollWidth") <= width


def test_a_finger_draws(server: AnnotateServer, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile", 400, 800, touch=True) as browser:
        browser.open(server.url)
        # The stage is 400 pixels wide and 432 high: one to one with the picture, below 66 pixels.
        browser.touch((150, 200), (170, 230), (210, 260))
        wait_for(lambda: len(saved(browser, server)) == 1, "the box")
        assert saved(browser, server)[0].full_bounds == pytest.approx((134, 150, 194, 210), abs=2)
        browser.click("[data-tool=point]")
        browser.touch((300, 300))
        wait_for(lambda: len(saved(browser, server)) == 2, "the point")
        browser.click("[data-tool=move]")
        browser.touch((180, 230))
        browser.click("#remove")
        wait_for(lambda: [a.is_point for a in saved(browser, server)] == [True], "the deletion")
        assert browser.problems == []
