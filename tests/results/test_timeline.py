"""When an analysis did what."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Picture

from coarse2fine import Analysis, Model, analyze, open_image
from coarse2fine.results.timeline import Timeline
from coarse2fine.tiling.stats import Span


@pytest.fixture
def tiled(tmp_path: Path) -> Path:
    path = tmp_path / "tiled.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (700, 900), np.uint8)
    tifffile.imwrite(path, pixels, tile=(128, 128), compression="deflate")
    return path


def test_the_steps_follow_each_other_and_hold_the_reading(tiled: Path, detector: Model) -> None:
    with analyze(tiled, detector, budget=0.6, profile=True) as analysis:
        found = analysis.timeline
        cost = analysis.cost
    assert found is not None
    assert [name for name, _, _ in found.steps] == ["scan", "choose", "refine", "audit", "conclude"]
    times = [time for _, start, end in found.steps for time in (start, end)]
    assert times == sorted(times)
    assert times[0] == 0.0
    decoded = [span for span in found.spans if span.kind == "decode"]
    assert len(decoded) == cost.chunks
    assert sum(s.end - s.start for s in decoded) == pytest.approx(cost.decode_seconds)
    waited = sum(s.end - s.start for s in found.spans if s.kind == "wait")
    assert waited == pytest.approx(cost.wait_seconds)
    assert 0 < cost.wait_seconds <= cost.seconds
    assert len({span.thread for span in found.spans}) >= 2  # threads decode, this one waits


def test_without_profile_there_is_none_and_times_are_kept_in_files(
    tiled: Path, detector: Model, tmp_path: Path
) -> None:
    with analyze(tiled, detector, budget=0.6) as analysis:
        assert analysis.timeline is None
        assert analysis.cost.decode_seconds > 0
        analysis.save(tmp_path / "out")
        with Analysis.load(tmp_path / "out") as again:
            assert again.cost == analysis.cost
            assert again.timeline is None


def test_an_open_image_records_while_it_is_analysed_only(tiled: Path, detector: Model) -> None:
    with open_image(tiled) as image:
        first = analyze(image, detector, audit=0, profile=True).timeline
        with pytest.raises(ValueError, match="does not pay for the scan"):
            analyze(image, detector, budget=1e-9, profile=True)
        assert image.stats.spans is None  # what is read later would be added for ever
        second = analyze(image, detector, audit=0, profile=True).timeline
    assert first is not None
    assert second is not None
    assert any(span.kind == "decode" for span in first.spans)
    assert not any(span.kind == "decode" for span in second.spans)  # all chunks are in the cache
    assert pickle.loads(pickle.dumps(second)) == second


def test_it_is_printed_and_drawn(tmp_path: Path) -> None:
    spans = (Span("decode", 7, 10.5, 11.0), Span("decode", 8, 10.5, 12.5), Span("wait", 1, 10.0, 10.75))
    timeline = Timeline.of([("scan", 10.0, 12.0), ("refine", 12.0, 13.0)], [*spans, Span("wait", 1, 8.0, 9.0)])
    lines = [line.split() for line in str(timeline).splitlines()]
    assert lines[1] == ["scan", "2.00", "0.75", "2.50"]
    assert lines[2] == ["refine", "1.00", "0.00", "0.00"]
    with Picture.open(timeline.plot(tmp_path / "timeline.png")) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or ()}
    for wanted in ((0, 114, 178), (0, 158, 115), (213, 94, 0), (86, 180, 233)):
        assert wanted in colours
