"""Lines of progress: each step, and how far the whole is."""

from __future__ import annotations

import re
from itertools import count

import pytest

from coarse2fine.progress import Moment, Progress, listening


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute passes at every look at the clock."""
    minutes = count(0, 60)
    monkeypatch.setattr("coarse2fine.progress.time.monotonic", lambda: float(next(minutes)))


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.mark.usefixtures("_clock")
def test_lines_tell_how_far_the_whole_is_and_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(True, (("first", 0.6), ("second", 0.2), ("second", 0.2))) as bars:
        for name, ticks in (("first", (1, 2)), ("second", (2,)), ("second", (2,))):
            tick = bars.task(name)
            for done in ticks:
                tick(done, 2)
    lines = told(capsys)
    shares = [int(found.group(1)) for line in lines if (found := re.search(r"(\d+)% in all", line))]
    assert shares == [30, 60, 80, 100]
    assert all("left" in line for line in lines[:-1])
    assert lines[0].startswith("first: 1 of 2 (30% in all, about ")


def test_a_step_that_was_left_out_counts_as_done_and_an_unexpected_one_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress(True, (("first", 0.5), ("never", 0.25), ("last", 0.25))) as bars:
        bars.task("first")(3, 3)
        bars.task("last")(3, 3)
        bars.task("surprise")(1, 1)
    assert [re.findall(r"\d+%", line) for line in told(capsys)] == [["50%"], ["100%"], ["100%"]]


def test_a_step_that_was_not_expected_is_a_tenth_more_in_any_unit(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(True, (("first", 4e12), ("second", 1e12))) as bars:
        bars.task("first")(1, 1)
        bars.task("surprise")(1, 2)
        bars.task("second")(1, 1)
    assert [re.findall(r"\d+%", line) for line in told(capsys)] == [["80%"], ["95%"]]


def test_single_steps_are_plain_and_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(True) as bars:
        bars.task("scan")(5, 5)
    assert told(capsys) == ["scan: 5 of 5"]
    with Progress(False, (("scan", 1.0),)) as bars:
        bars.task("scan")(5, 5)
    assert told(capsys) == []


@pytest.mark.usefixtures("_clock")
def test_a_listener_hears_what_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[Moment] = []
    with listening(heard.append), Progress(False, (("first", 0.6), ("second", 0.4))) as bars:
        first = bars.task("first")
        first(1, 2)
        first(2, 2)
        bars.task("second")(1, 2)
    with Progress(False, (("first", 1.0),)) as bars:
        bars.task("first")(1, 1)
    assert [(m.step, m.done, m.total) for m in heard] == [("first", 1, 2), ("first", 2, 2), ("second", 1, 2)]
    assert [m.share for m in heard] == pytest.approx([0.3, 0.6, 0.8])
    assert heard[0].seconds_left is not None
    assert heard[0].seconds_left > 0
    with listening(heard.append), Progress(False) as bars:
        bars.task("scan")(1, 4)
    assert heard[-1:] == [Moment("scan", 1, 4)]
    assert told(capsys) == []
