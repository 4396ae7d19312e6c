"""The benchmark of batches: its broken files are broken, and what it kills is what it means to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from benchmarks.batches.data import BROKEN, MODEL, write_bomb, write_broken, write_good, write_large
from benchmarks.batches.run import contents, full_disk, run_and_kill

from coarse2fine.batch.run import analyze_folder
from coarse2fine.tiling.geometry import Box
from coarse2fine.tiling.opening import open_image


@pytest.mark.slow
def test_every_kind_of_broken_file_is_named_and_good_ones_are_done(tmp_path: Path) -> None:
    good = write_good(tmp_path / "in", 128, 3)
    bad = write_broken(tmp_path / "in", len(BROKEN))
    batch = analyze_folder(tmp_path / "in", tmp_path / "out", MODEL, workers=0)
    status = {record.name: record.status for record in batch.records}
    assert len(BROKEN) == 12
    assert sorted(status) == sorted(bad + good)
    assert {name for name, what in status.items() if what == "done"} == set(good)
    assert all(record.error and record.name in str(batch) for record in batch.failed)


def test_images_of_all_containers_are_the_same_scenes(tmp_path: Path) -> None:
    names = write_good(tmp_path, 128, 6)
    assert [Path(name).suffix for name in names] == [".png", ".tif", ".zarr"] * 2
    pixels = []
    for name in names:
        with open_image(tmp_path / name) as image:
            pixels.append(image.read(Box(0, 0, 128, 128)))
    assert len({values.tobytes() for values in pixels}) == 6
    assert len({tuple(np.sort(values, axis=None)) for values in pixels}) == 1


def test_large_images_take_little_room(tmp_path: Path) -> None:
    write_large(tmp_path / "large.zarr", 1500)
    with open_image(tmp_path / "large.zarr") as image:
        assert image.shape[:2] == (1500, 1500)
        assert image.read(Box(1490, 1490, 1500, 1500)).any()
    write_bomb(tmp_path / "bomb.bmp", 2000)
    with open_image(tmp_path / "bomb.bmp") as image:
        assert image.shape == (2000, 2000, 3)


def test_contents_leave_out_times_and_partial_work(tmp_path: Path) -> None:
    for name in ("a/analysis.json", "a/timing.json", "a/maps/0/0", ".batch/log.jsonl", "batch.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert contents(tmp_path) == {name: name.encode() for name in ("a/analysis.json", "a/maps/0/0", "batch.json")}


def test_a_command_without_workers_is_left_to_end(tmp_path: Path) -> None:
    killed = Counter[str]()
    status = run_and_kill([sys.executable, "-c", "raise SystemExit(3)"], killed, 5, np.random.default_rng(0), 0.01)
    assert status == 3
    assert killed.total() == 0


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting takes Linux and its administrator")
def test_a_disk_that_cannot_be_mounted_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(arguments: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(arguments, 32, "", "mount: permission denied")

    monkeypatch.setattr(subprocess, "run", refused)
    section = full_disk(tmp_path, 1)
    assert section.figures == {}
    assert section.notes == ("full disk is left out: mount: permission denied",)
