"""Batches in one process: what is found, done, left out, resumed and summed up."""

from __future__ import annotations

import csv
import errno
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coarse2fine import analyze, load_model
from coarse2fine import model as planning
from coarse2fine.batch import lock, request, run, worker
from coarse2fine.batch import store as state
from coarse2fine.batch.estimate import estimate
from coarse2fine.batch.inputs import Item, find_items, is_one_image, sharded
from coarse2fine.batch.job import Job, Opening, Record, key_of
from coarse2fine.batch.request import BatchRequest, Workers
from coarse2fine.batch.run import analyze_folder
from coarse2fine.batch.summary import BatchResult
from coarse2fine.bundle import ModelSpec
from coarse2fine.cli.main import main
from coarse2fine.config import Config
from coarse2fine.engine import run_analysis
from coarse2fine.model import Model
from coarse2fine.progress import Progress
from coarse2fine.results.analysis import Analysis
from coarse2fine.steps import pieces
from coarse2fine.steps.checkpoint import StoredCheckpoint
from coarse2fine.steps.pieces import cut
from coarse2fine.steps.plan import Plan
from coarse2fine.steps.refine import window_pixels
from coarse2fine.tiling.opening import open_image

MakeImage = Callable[..., NDArray[np.uint8]]
WriteImage = Callable[[Path, NDArray[np.uint8]], None]
pytestmark = pytest.mark.usefixtures("plain_pictures")


def write_png(path: Path, pixels: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return path


@pytest.fixture
def folder(tmp_path: Path, make_image: MakeImage) -> Path:
    """Three good images and one bad."""
    for number in range(3):
        write_png(tmp_path / "in" / f"bild {number}.png", make_image(120, 150 + number, 3, seed=number))
    (tmp_path / "in" / "a bad one.tif").write_text("this is no image\n" * 30)
    return tmp_path / "in"


@pytest.fixture
def model_file(tmp_path: Path, detector: Model) -> Path:
    return detector.save(tmp_path / "tiny.c2f")


def contents(out: Path) -> dict[str, bytes]:
    """All files that are to be the same in every run."""
    found = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file() and ".batch" not in p.parts}
    page = "report.html"  # that of the batch names the folder
    return {name: path.read_bytes() for name, path in found.items() if path.name != "timing.json" and name != page}


def statuses(batch: BatchResult) -> dict[str, str]:
    return {record.name: record.status for record in batch.records}


# What is meant


def test_folders_globs_lists_and_addresses_are_found(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.tif", "c/1.tif", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_text(
        "﻿path,mpp,who\nb/2.png,0.25,me\nmissing.svs,,\nhttps://example.org/a/x.tif?token=1,,\n", encoding="utf-8"
    )
    (tmp_path / "list.txt").write_text("# a comment\n\n  b/1.tif\n")
    items = find_items([tmp_path / "b", str(tmp_path / "*" / "1.tif"), tmp_path / "list.csv", tmp_path / "list.txt"])
    by_source = {
        Path(i.source).relative_to(tmp_path).as_posix() if "://" not in i.source else i.source: i for i in items
    }
    assert list(by_source) == ["b/1.tif", "b/2.png", "c/1.tif", "missing.svs", "https://example.org/a/x.tif?token=1"]
    assert by_source["b/2.png"].mpp == 0.25
    assert by_source["b/2.png"].name == "2.png"
    assert by_source["https://example.org/a/x.tif?token=1"].name == "x.tif"
    twins = [by_source["b/1.tif"].name, by_source["c/1.tif"].name]
    assert len(set(twins)) == 2
    assert all(name.startswith("1.tif-") for name in twins)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,mpp\na,1\n", "expected a column named path, found file, mpp"),
        ("path,mpp\na.tif,wide\n", "entry 1: expected microns per pixel as a positive number, got 'wide'"),
        ("path,mpp\na.tif,-1\n", "got '-1'"),
        ("path\n", "the list names no image"),
        ("", "expected a column named path, found none"),
    ],
)
def test_a_bad_list_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_items(tmp_path / "list.csv")


def test_what_is_one_image(tmp_path: Path) -> None:
    image = write_png(tmp_path / "a[1].png", np.zeros((9, 9), np.uint8))
    (tmp_path / "list.txt").write_text("a[1].png\n")
    assert is_one_image([image])
    assert is_one_image([str(image)])
    assert is_one_image(["https://example.org/a.csv"])
    (tmp_path / "told.npy").touch()  # by `find_items`, and not here again
    for several in ([tmp_path], [tmp_path / "*.png"], [tmp_path / "list.txt"], [image, image], [tmp_path / "none.png"]):
        assert not is_one_image(several)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("text", "name", "mpp"),
    [
        ("path;mpp;model\na, b.tif;0,5;x\n", "a, b.tif", 0.5),
        ("sep=;\r\npath;mpp\r\na.tif;0.25\r\n", "a.tif", 0.25),
        ("path\tmpp\na.tif\t0.5\n", "a.tif", 0.5),
        ("path,mpp\na;b.tif,0.5\n", "a;b.tif", 0.5),
        ('"path";"mpp"\n"a;b.tif";2\n', "a;b.tif", 2.0),
    ],
)
def test_lists_as_spreadsheets_write_them(tmp_path: Path, text: str, name: str, mpp: float, encoding: str) -> None:
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    (item,) = find_items(tmp_path / "list.csv")
    assert (item.source, item.mpp) == (str(tmp_path / name), mpp)


@pytest.mark.parametrize("content", [b"path\n\0\n", b'path\n"' + b"x" * 200_000, b"\xff\xfea"])
def test_a_list_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"list\.csv: expected a "):
        find_items(tmp_path / "list.csv")


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=8), st.integers(1, 4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_names_are_unique_and_shards_are_a_partition(names: list[str], parts: int) -> None:
    sources = [f"https://example.org/{i}/{name}" for i, name in enumerate(names)]
    items = find_items(sources)
    folders = [item.name for item in items]
    assert len({name.casefold() for name in folders}) == len(items)
    assert not any(
        set(name) & set('/\\:*?"<>|') or name.startswith(".") or name in {"", "batch.json"} for name in folders
    )
    shards = [sharded(items, (part, parts)) for part in range(1, parts + 1)]
    assert sorted((i for shard in shards for i in shard), key=lambda i: i.source) == sorted(
        items, key=lambda i: i.source
    )
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_shard_that_is_none() -> None:
    with pytest.raises(ValueError, match="got 3/2"):
        sharded([Item("a")], (3, 2))


def test_the_key_is_of_all_that_matters(tmp_path: Path, model_file: Path, detector: Model) -> None:
    item = Item(str(write_png(tmp_path / "a.png", np.zeros((9, 9), np.uint8))))
    spec, config, opening = ModelSpec.of(model_file), Config(), Opening()
    key = key_of(item, spec, config, opening)
    assert key == key_of(item, spec, replace(config, batch_size=3), opening)
    moved = Item(str(shutil.copy2(item.source, tmp_path / "elsewhere.png")))
    Path(moved.source).rename(tmp_path.parent / "a.png")
    assert key == key_of(Item(str(tmp_path.parent / "a.png")), spec, config, opening)
    other = ModelSpec.of(replace(detector, tau=0.3).save(tmp_path / "other.c2f"))
    assert key != key_of(item, other, config, opening)
    assert key != key_of(item, spec, replace(config, budget=0.5), opening)
    assert key != key_of(item, spec, config, Opening(mpp=0.5))
    os.utime(item.source, (1, 1))
    assert key != key_of(item, spec, config, opening)


# What is done


def test_every_image_is_attempted_and_the_bad_one_named(folder: Path, tmp_path: Path, model_file: Path) -> None:
    batch = analyze_folder(folder, tmp_path / "out", model_file, workers=0)
    assert statuses(batch) == {"a bad one.tif": "failed", **{f"bild {i}.png": "done" for i in range(3)}}
    assert not batch.ok
    (bad,) = batch.failed
    assert "expected a TIFF, PNG" in bad.error
    assert "ImageError" in bad.traceback
    assert f"failed {folder / 'a bad one.tif'}: " in str(batch)
    stored = json.loads((tmp_path / "out" / "batch.json").read_text(encoding="utf-8"))
    assert stored["statuses"] == {"done": 3, "failed": 1}
    assert stored["results"][0]["traceback"] == bad.traceback
    found = json.loads(batch.to_coco(tmp_path / "finds.json").read_text(encoding="utf-8"))
    assert [image["file_name"] for image in found["images"]] == [f"bild {i}.png" for i in range(3)]
    assert len(found["annotations"]) == batch.regions
    assert stored["regions"] == batch.regions == sum(r.facts["regions"] for r in batch.records if r.has_result) > 5
    table = (tmp_path / "out" / "batch.csv").read_text(encoding="utf-8").splitlines()
    assert table[0].startswith("name,source,status")
    assert len(table) == 5
    for number in range(3):
        with analyze(folder / f"bild {number}.png", model_file) as alone:
            alone.save(tmp_path / "alone")
        made = contents(tmp_path / "out" / f"bild {number}.png")
        del made["record.json"]
        assert made == contents(tmp_path / "alone")
        shutil.rmtree(tmp_path / "alone")


def test_what_is_done_is_not_done_again(
    folder: Path, tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, begun = tmp_path / "out", []

    def note(job: Job, steps: Any) -> Record:
        begun.append(job.item.name)
        return analyze_item(job, steps)

    analyze_item = worker.analyze_item
    monkeypatch.setattr(run, "analyze_item", note)
    first = analyze_folder(folder, out, model_file, workers=0)
    assert len(begun) == 4
    before = contents(out)
    shutil.rmtree(out / "bild 1.png")
    begun.clear()
    second = analyze_folder(folder, out, model_file, workers=0)
    assert begun == ["a bad one.tif", "bild 1.png"]  # what failed may do better today
    assert second.before == 2
    assert "2 of them by earlier runs" in str(second)
    assert second.summary() == first.summary()
    assert contents(out) == before
    begun.clear()
    analyze_folder(folder, out, model_file, workers=0, threshold=0.7)
    assert len(begun) == 4
    begun.clear()
    analyze_folder(folder, out, model_file, workers=0, threshold=0.7, overwrite=True)
    assert len(begun) == 4


@pytest.mark.slow
def test_another_configuration_replaces_results(folder: Path, tmp_path: Path, model_file: Path) -> None:
    out = tmp_path / "out"
    analyze_folder(folder, out, model_file, workers=0, budget=0.5)
    (out / "bild 0.png" / "a note of mine.txt").write_text("stays")
    analyze_folder(folder, out, model_file, workers=0)
    analyze_folder(folder, tmp_path / "plain", model_file, workers=0)
    (out / "bild 0.png" / "a note of mine.txt").unlink()
    assert contents(out) == contents(tmp_path / "plain")


def test_a_model_in_memory_and_models_by_list(folder: Path, tmp_path: Path, model_file: Path, detector: Model) -> None:
    other = replace(detector, threshold=0.8, name="other").save(folder / "other.c2f")
    (folder / "list.csv").write_text("path,model\nbild 0.png,\nbild 1.png,other.c2f\nbild 2.png,digits\n")
    batch = analyze_folder(folder / "list.csv", tmp_path / "out", detector, workers=0)
    used = [json.loads((tmp_path / "out" / r.name / "analysis.json").read_text())["model"] for r in batch.records]
    assert [model["name"] for model in used] == ["tiny", "other", "digits"]
    assert [model["sha256"] for model in used[:2]] == [ModelSpec.of(model_file).sha256, ModelSpec.of(other).sha256]
    assert analyze_folder(folder / "list.csv", tmp_path / "out", detector, workers=0).before == 3


def test_a_damaged_image_has_a_result_and_is_named(
    tmp_path: Path, make_image: MakeImage, model_file: Path, write_damaged: WriteImage
) -> None:
    path = tmp_path / "in" / "scene.tif"
    path.parent.mkdir()
    write_damaged(path, make_image(256, 256))
    for before in (0, 1):
        batch = analyze_folder(path.parent, tmp_path / "out", model_file, workers=0, budget=1.0)
        assert statuses(batch) == {"scene.tif": "damaged"}
        assert batch.before == before
        assert not batch.ok
        assert "parts cannot be read" in str(batch)
    assert (tmp_path / "out" / "scene.tif" / "analysis.json").is_file()


def test_stopping_at_the_first_failure(folder: Path, tmp_path: Path, model_file: Path) -> None:
    batch = analyze_folder(folder, tmp_path / "out", model_file, workers=0, on_error="fail")
    assert statuses(batch) == {"a bad one.tif": "failed", **{f"bild {i}.png": "waiting" for i in range(3)}}


def test_a_full_disk_stops_the_batch_and_leaves_nothing_half(
    folder: Path, tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Analysis.save

    def full(self: Analysis, target: Path) -> Path:
        if self.image.name == "bild 1":
            target.mkdir(parents=True)
            (target / "regions.geojson").write_text("half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Analysis, "save", full)
        batch = analyze_folder(folder, tmp_path / "out", model_file, workers=0)
    assert [record.status for record in batch.records] == ["failed", "done", "failed", "waiting"]
    assert "make room and run the same command again" in batch.records[2].error
    assert not (tmp_path / "out" / "bild 1.png").exists()
    analyze_folder(folder, tmp_path / "out", model_file, workers=0)
    analyze_folder(folder, tmp_path / "plain", model_file, workers=0)
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_ctrl_c_says_how_to_go_on(
    folder: Path, tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    analyze_item = worker.analyze_item

    def interrupted(job: Job, steps: Any) -> Record:
        if job.item.name == "bild 1.png":
            raise KeyboardInterrupt
        return analyze_item(job, steps)

    command = ["analyze", str(folder), "-o", str(tmp_path / "out"), "-m", str(model_file), "-n", "0", "-q"]
    with monkeypatch.context() as patch:
        patch.setattr(run, "analyze_item", interrupted)
        assert main(command) == 130
    assert "interrupted; 2 image(s) are left: run the same command again" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "batch.json").read_text())["statuses"] == {
        "done": 1,
        "failed": 1,
        "waiting": 2,
    }
    assert main(command) == 1
    assert "3 done (1 of them by earlier runs), 1 failed" in capsys.readouterr().out


def test_recall_is_pooled(tmp_path: Path, sparse: Model, digits: Any) -> None:
    for number in range(3):
        write_png(tmp_path / "in" / f"{number}.png", np.roll(digits.image, 97 * number, axis=1))
    model = replace(sparse, tau=4 * sparse.tau)
    for _ in range(2):  # the second run knows of the audits by what the first one stored
        batch = analyze_folder(tmp_path / "in", tmp_path / "out", model, workers=0, audit=0.1)
        assert batch.audit is not None
        each = [analyze(tmp_path / "in" / f"{n}.png", model, audit=0.1).audit for n in range(3)]
        assert batch.audit == type(batch.audit).pooled([a for a in each if a is not None])
        assert "over 3 of 3 image(s)" in str(batch)
        assert batch.summary()["audit"]["recall_interval"] == list(batch.audit.recall_interval)
    assert analyze_folder(tmp_path / "in", tmp_path / "budget", model, workers=0, budget=0.5).audit is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "workers must be a number of processes"),
        ({"workers": 2, "scheduler": "tcp://a:1"}, "give workers or a scheduler"),
        ({"workers": 0, "split": True}, "need workers"),
        ({"time_limit": 0.0}, "time_limit must be positive"),
    ],
)
def test_workers_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Workers(**options)


# The command


def test_a_dry_run_says_what_would_be_done(
    folder: Path, tmp_path: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["analyze", str(folder), "-o", str(out), "-m", str(model_file), "-q"]
    assert main([*command, "--dry-run"]) == 1
    printed = capsys.readouterr().out
    assert "cannot be read: " in printed
    assert "a bad one.tif" in printed
    assert "3 image(s) to do, 0 done already, 1 unreadable" in printed
    assert not out.exists()
    items = find_items(folder)
    budget = estimate(BatchRequest(items, out, model_file, Config(budget=0.5)))
    with open_image(folder / "bild 0.png") as image:
        spent = run_analysis(image, detector_of(model_file), Config(budget=0.5), steps=Progress(shown=False)).cost
    assert budget.images[1].least_macs == spent.scan_macs
    assert spent.macs <= budget.images[1].most_macs <= 0.5 * spent.exhaustive_macs + 1
    assert main([*command, "-n", "0"]) == 1
    assert main([*command, "--dry-run"]) == 1
    assert "0 image(s) to do, 3 done already" in capsys.readouterr().out


def detector_of(path: Path) -> Model:
    from coarse2fine import load_model  # noqa: PLC0415

    return load_model(path)


def test_plain_lines_where_there_is_no_terminal(
    folder: Path, tmp_path: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", str(folder), "-o", str(tmp_path / "out"), "-m", str(model_file), "-n", "0"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("[1/4] a bad one.tif: failed: ")
    assert lines[1].startswith("[2/4] bild 0.png: ")


@pytest.mark.parametrize("text", ["3/2", "0/2", "1", "a/b"])
def test_a_shard_that_cannot_be(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["analyze", "a.png", "-o", "out", "--shard", text])
    assert "expected I/N with I from 1 to N" in capsys.readouterr().err


def test_a_single_image_is_done_once(
    folder: Path, tmp_path: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["analyze", str(folder / "bild 0.png"), "-o", str(tmp_path / "out"), "-m", str(model_file), "-q"]
    assert main(command) == 0
    assert "found " in capsys.readouterr().out
    assert not (tmp_path / "out" / ".batch").exists()
    assert main(command) == 0
    assert "holds this analysis already; do it again with --overwrite" in capsys.readouterr().out
    assert main([*command, "--dry-run"]) == 0
    assert "0 image(s) to do, 1 done already" in capsys.readouterr().out
    assert main([*command, "--overwrite"]) == 0
    assert "found " in capsys.readouterr().out


# What may lie in the way


def test_a_page_is_written_and_an_error_in_it_fails_nothing(
    folder: Path, tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    command = ["analyze", str(folder), "-o", str(out), "-m", str(model_file), "-n", "0", "-q"]
    assert main(command) == 1
    assert "bild%200.png/report.html" in (out / "report.html").read_text("utf-8")
    first = contents(out)
    shutil.rmtree(out / "bild 1.png")
    assert main(command) == 1
    assert contents(out) == first
    assert main([*command, "--overwrite", "--no-report"]) == 1
    assert not list(out.glob("*/report.html"))  # those of the results before are gone
    monkeypatch.setattr(state, "write_report", lambda *_: 1 / 0)
    assert main([*command, "--overwrite"]) == 1
    assert len(list(out.glob("*/record.json"))) == 3
    assert "bild 0.png could not be written: ZeroDivisionError" in caplog.text


def test_a_page_for_which_there_is_no_room_is_written_when_there_is(
    folder: Path, tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results are written, and the disk is full when their page comes."""

    def full(target: Path, **_: object) -> AbstractContextManager[object]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    with monkeypatch.context() as patch:
        patch.setattr("coarse2fine.report.image_page.replacing_stream", full)
        batch = analyze_folder(folder, tmp_path / "out", model_file, workers=0)
    assert [record.status for record in batch.records] == ["failed", "failed", "waiting", "waiting"]
    assert "make room and run the same command again" in batch.records[1].error
    again = analyze_folder(folder, tmp_path / "out", model_file, workers=0)
    assert again.before == 0
    assert len(list((tmp_path / "out").glob("*/report.html"))) == 3


def test_what_the_disk_did_not_take_is_not_done(
    folder: Path, tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems say only when they are asked to store what was written that they are full."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        batch = analyze_folder(folder / "bild 0.png", tmp_path / "out", model_file, workers=0)
    assert "make room and run the same command again" in batch.records[0].error
    assert not (tmp_path / "out" / "bild 0.png").exists()


def test_an_earlier_result_leaves_nothing_behind(
    folder: Path, tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("coarse2fine.results.analysis._PACKED_FROM", -1)
        analyze_folder(folder / "bild 0.png", out, model_file, workers=0, overwrite=True)
        assert (out / "bild 0.png" / "regions.geojson.gz").is_file()
    analyze_folder(folder / "bild 0.png", out, model_file, workers=0, overwrite=True)
    assert not (out / "bild 0.png" / "regions.geojson.gz").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not Unicode are of Linux")
def test_a_name_that_is_not_unicode(tmp_path: Path, make_image: MakeImage, model_file: Path) -> None:
    path = write_png(tmp_path / "in" / os.fsdecode(b"bad \xff$.png"), make_image(64, 64))
    batch = analyze_folder(tmp_path / "in", tmp_path / "out", model_file, workers=0)
    assert batch.ok
    assert batch.records[0].name == "bad _$.png"
    assert json.loads((tmp_path / "out" / "batch.json").read_text("utf-8"))["results"][0]["source"] == str(path)
    (tmp_path / "out" / "batch.csv").read_text("utf-8")
    (tmp_path / "out" / "report.html").read_text("utf-8")
    assert Analysis.load(tmp_path / "out" / "bad _$.png").image.name == path.stem


@pytest.mark.skipif(sys.platform == "win32", reason="such names are not of Windows")
def test_control_characters_of_names_are_escaped_in_the_table(tmp_path: Path, model_file: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a\x1b[31m\tb\nc.tif").write_bytes(b"no image")
    analyze_folder(tmp_path / "in", tmp_path / "out", model_file, workers=0)
    table = (tmp_path / "out" / "batch.csv").read_text("utf-8")
    (row,) = csv.DictReader(table.splitlines())
    assert row["source"].endswith(r"a\x1b[31m\tb\nc.tif")
    assert not set(table) & {"\x1b", "\t"}


def test_results_among_the_images_are_no_images(folder: Path, model_file: Path) -> None:
    (folder / "a bad one.tif").unlink()
    for _ in range(2):
        batch = analyze_folder(f"{folder}/**/*.png", folder / "out", model_file, workers=0)
        assert sorted(statuses(batch)) == ["bild 0.png", "bild 1.png", "bild 2.png"]
    with pytest.raises(FileNotFoundError, match="contains only results"):
        find_items(f"{folder}/out/*/*.png")
    assert len(find_items(folder / "out" / "bild 0.png" / "overview.png")) == 1


def test_results_never_lie_in_the_place_of_an_image(tmp_path: Path, make_image: MakeImage, model_file: Path) -> None:
    path = write_png(tmp_path / "in" / "a.png", make_image(64, 64))
    with pytest.raises(ValueError, match="would replace the image; name another folder"):
        analyze_folder(tmp_path / "in", tmp_path / "in", model_file, workers=0)
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.png"]


def test_one_run_at_a_time(folder: Path, tmp_path: Path, model_file: Path) -> None:
    (tmp_path / "out").mkdir()
    with lock.exclusive_lock(tmp_path / "out", "batch"):
        with pytest.raises(BlockingIOError, match="another run is writing into"):
            analyze_folder(folder, tmp_path / "out", model_file, workers=0)
        assert not (tmp_path / "out" / "batch.json").exists()
    assert len(analyze_folder(folder, tmp_path / "out", model_file, workers=0).failed) == 1


@pytest.mark.parametrize(
    ("one", "other", "free"),
    [
        ("batch", "batch-1-of-2", False),
        ("batch-1-of-2", "batch", False),
        ("batch-1-of-2", "batch-1-of-2", False),
        ("batch-1-of-2", "batch-2-of-3", False),
        ("image", "image", False),
        ("batch-1-of-2", "batch-2-of-2", True),
    ],
)
def test_runs_that_may_have_an_image_in_common_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str, other: str, free: bool
) -> None:
    monkeypatch.setattr(lock, "_LOCK_SECONDS", 0.01)
    expected = nullcontext() if free else pytest.raises(BlockingIOError, match="another run")
    with lock.exclusive_lock(tmp_path, one), expected, lock.exclusive_lock(tmp_path, other):
        pass
    assert not list(tmp_path.iterdir())
    with lock.exclusive_lock(tmp_path, other):
        pass


def test_a_single_image_is_analysed_by_one_run_at_a_time(
    folder: Path, tmp_path: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["analyze", str(folder / "bild 0.png"), "-o", str(tmp_path / "out"), "-m", str(model_file), "-q"]
    (tmp_path / "out").mkdir()
    with lock.exclusive_lock(tmp_path / "out", lock.SINGLE):
        assert main(command) == 1
    assert "another run is writing into" in capsys.readouterr().err
    assert main(command) == 0


def test_the_page_tells_what_shards_did_last(folder: Path, tmp_path: Path, model_file: Path) -> None:
    out = tmp_path / "out"
    command = ["analyze", str(folder), "-o", str(out), "-m", str(model_file), "-n", "0", "-q"]
    assert main(command) == 1
    write_png(folder / "neu.png", np.zeros((90, 90), np.uint8))
    for shard in ("1/2", "2/2", "1/3"):
        main([*command, "--shard", shard])
    page = (out / "report.html").read_text("utf-8")
    assert "5 images" in page
    assert "neu.png" in page
    assert main(command) == 1
    assert sorted(path.name for path in out.glob("batch*")) == ["batch.csv", "batch.json"]
    assert "5 images" in (out / "report.html").read_text("utf-8")


@pytest.mark.parametrize("several", [True, False])
def test_images_that_were_moved_are_found_where_they_are(
    folder: Path, tmp_path: Path, model_file: Path, several: bool
) -> None:
    def command(out: str) -> list[str]:
        source = folder if several else folder / "bild 0.png"
        return ["analyze", str(source), "-o", str(tmp_path / out), "-m", str(model_file), "-n", "0", "-q"]

    (folder / "a bad one.tif").unlink()
    assert main(command("out")) == 0
    folder = folder.rename(tmp_path / "moved")
    assert main(command("out")) == 0
    assert main(command("plain")) == 0
    pages = {name for name in contents(tmp_path / "plain") if name.endswith("report.html")}
    moved, plain = contents(tmp_path / "out"), contents(tmp_path / "plain")
    assert {n: b for n, b in moved.items() if n not in pages} == {n: b for n, b in plain.items() if n not in pages}


def test_spaces_and_capitals_in_lists_hide_nothing(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('Path, MPP , model\n"a b.png" , 0.5, craters\nc.png\n', "utf-8")
    first, second = find_items(tmp_path / "list.csv")
    assert (Path(first.source).name, first.mpp, first.model) == ("a b.png", 0.5, "craters")
    assert (Path(second.source).name, second.mpp, second.model) == ("c.png", None, None)


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), float("inf")])
def test_a_pixel_size_that_cannot_be_is_refused_before_the_work(folder: Path, tmp_path: Path, mpp: float) -> None:
    with pytest.raises(ValueError, match="expected positive microns per pixel, got"):
        analyze_folder(folder, tmp_path / "out", mpp=mpp, workers=0)
    assert not (tmp_path / "out").exists()


def test_lists_with_any_name_and_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes('path,mpp\n"a\nb\u2028,c.png",0.5\n'.encode())
    (item,) = find_items(tmp_path / "list.csv")
    assert (Path(item.source).name, item.mpp) == ("a\nb\u2028,c.png", 0.5)
    (tmp_path / "list.txt").write_bytes("ä.png\r\nö.png\r\n".encode())
    assert [Path(item.source).name for item in find_items(tmp_path / "list.txt")] == ["ä.png", "ö.png"]
    (tmp_path / "list.txt").write_bytes(b"\xe4.png")
    with pytest.raises(ValueError, match=r"list\.txt: expected a list in UTF-8"):
        find_items(tmp_path / "list.txt")


# Large images, in pieces


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_PIXELS", 2**14)
    monkeypatch.setattr(pieces, "ROUND_PIXELS", 2**14)
    monkeypatch.setattr(request, "KEEP_FROM", 1)
    monkeypatch.setattr(planning, "DENSE_SIDE", 8)


@given(st.integers(1, 400), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_pieces_are_a_partition_and_the_best_come_first(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = _small_model()
    sides = rng.choice([2, 8, 16], (count, 2))
    plan = Plan(
        rng.integers(0, 3000, (count, 2)), sides, np.sort(rng.random(count))[::-1].astype(np.float32), (3000, 3000)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_PIXELS", 2**15)
        patch.setattr(pieces, "ROUND_PIXELS", 2**17)
        parts = list(cut(plan, model))
    order = np.concatenate(parts).tolist()
    assert sorted(order) == list(range(count))
    if len(parts) > 1:
        first = int(np.searchsorted(window_pixels(plan, model).cumsum(), 2**17, side="right"))
        assert set(order[:first]) == set(range(first))


@functools.cache
def _small_model() -> Model:
    return load_model("digits")


class Counting(StoredCheckpoint):
    """Ends the work after so many pieces were made."""

    def __init__(self, folder: Path, most: int) -> None:
        super().__init__(folder)
        self.left = most

    def refine_or_load(self, plan: Plan, refine: Any) -> Any:
        def counted(piece: Plan) -> Any:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return refine(piece)

        return super().refine_or_load(plan, counted)


@pytest.mark.parametrize("fixture", ["detector", "explorer", "zoom_detector"])
@pytest.mark.parametrize("options", [{"budget": 0.6}, {"cells": 300}])
def test_work_in_pieces_equals_work_at_once(
    fixture: str,
    options: dict[str, Any],
    make_image: MakeImage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    model: Model = request.getfixturevalue(fixture)
    pixels, config = make_image(330, 410, seed=3), Config(precision="fp32", seed=4, **options)
    whole = run_analysis(pixels, model, config, steps=Progress(shown=False))
    monkeypatch.setattr(pieces, "PIECE_PIXELS", 2**13)
    monkeypatch.setattr(pieces, "ROUND_PIXELS", 2**12)
    assert len(list(cut(whole.plan, model))) > 3
    plain = run_analysis(pixels, model, config, steps=Progress(shown=False))
    with pytest.raises(KeyboardInterrupt):
        run_analysis(pixels, model, config, steps=Progress(shown=False), checkpoint=Counting(tmp_path, 3))
    again = Counting(tmp_path, 10**6)
    resumed = run_analysis(pixels, model, config, steps=Progress(shown=False), checkpoint=again)
    assert again.reused == 4  # the scan too
    assert resumed.regions == plain.regions
    assert resumed.cost.macs == plain.cost.macs == whole.cost.macs
    assert resumed.complete
    np.testing.assert_array_equal(resumed.refined, whole.refined)
    assert [r.label for r in plain.regions] == [r.label for r in whole.regions]
    assert len(whole.regions) > 3
    for one, other in zip(plain.regions, whole.regions, strict=True):
        np.testing.assert_allclose(one.full_box, other.full_box, atol=1e-2)
        assert one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.usefixtures("small_pieces")
def test_partial_work_is_used_and_then_removed(
    tmp_path: Path, make_image: MakeImage, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_png(tmp_path / "in" / "large.png", make_image(330, 410, seed=3))
    out, store = tmp_path / "out", StoredCheckpoint._store
    stored: list[str] = []

    def killed(self: StoredCheckpoint, path: Path, arrays: Any) -> None:
        if len(stored) == 4:
            raise KeyboardInterrupt
        stored.append(path.name)
        store(self, path, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(StoredCheckpoint, "_store", killed)
        with pytest.raises(KeyboardInterrupt):
            analyze_folder(tmp_path / "in", out, model_file, workers=0)
    (work,) = (out / ".batch" / "large.png").iterdir()
    assert sorted(p.name for p in work.iterdir()) == sorted(stored)
    half = work / stored[2]
    half.write_bytes(half.read_bytes()[:100])  # as a power cut may leave it
    assert analyze_folder(tmp_path / "in", out, model_file, workers=0).ok
    assert not work.exists()
    assert analyze_folder(tmp_path / "in", tmp_path / "plain", model_file, workers=0).ok
    assert contents(out) == contents(tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.usefixtures("small_pieces")
def test_a_single_image_interrupted_leaves_the_best_and_goes_on(
    tmp_path: Path, make_image: MakeImage, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_png(tmp_path / "large.png", make_image(330, 410, seed=3))

    def worker(self: Progress, name: str) -> Callable[[int, int], None]:
        def tick(done: int, total: int) -> None:
            if name == "refine" and 40 < done < total:
                raise KeyboardInterrupt

        return tick

    command = ["analyze", str(path), "-o", str(tmp_path / "out"), "-m", str(model_file), "-q"]
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "task", worker)
        assert main(command) in {0, 130}
    assert (tmp_path / "out" / ".batch").is_dir()
    assert not (tmp_path / "out" / "record.json").exists()
    assert main(command) == 0
    assert not (tmp_path / "out" / ".batch").exists()
    assert main([*command[:3], str(tmp_path / "plain"), *command[4:]]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_a_result_is_whole_or_has_no_record(
    tmp_path: Path, make_image: MakeImage, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between any two steps of moving a result over an older one, the next run does it again."""
    image = write_png(tmp_path / "a.png", make_image(120, 120))
    (job,) = BatchRequest(find_items(image), tmp_path / "out", model_file, workers=Workers(workers=0)).jobs()
    with run_analysis(image, detector_of(model_file), Config(), steps=Progress(shown=False)) as analysis:
        state.commit(job, analysis)
        whole = contents(job.target)
        seen = set()
        until, killed = 0, True
        while killed:
            with monkeypatch.context() as patch, suppress(InterruptedError):
                patch.setattr(Path, "replace", killed_after(until))
                state.commit(job, analysis)
                killed = False
            done = state.done_before(job) is not None
            assert not done or contents(job.target) == whole
            seen.add(done)
            until += 1
        assert until > 3
        assert seen == {True, False}
        state.commit(job, analysis)
        assert state.done_before(job) is not None


def killed_after(moves: int) -> Callable[[Path, Path], Path]:
    """A `Path.replace` that moves so many parts of a result."""
    left, replace_path = [moves], Path.replace

    def moved(self: Path, target: Path) -> Path:
        if self.parent.name.startswith("result-"):
            if not left[0]:
                raise InterruptedError("killed")
            left[0] -= 1
        return replace_path(self, target)

    return moved
