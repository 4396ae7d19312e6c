"""The pages: whole, escaped, quiet in a browser, and readable on a wide screen and a narrow one."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from coarse2fine import Analysis, Audit, analyze
from coarse2fine.audit.result import Part
from coarse2fine.model import Model
from coarse2fine.refiners.protocol import Label
from coarse2fine.region import Region
from coarse2fine.report.batch_page import write_batch_report, write_folder_report
from coarse2fine.report.image_page import css_colours, layers, recall_text, write_report
from tests.refining import relabelled

MakeImage = Callable[..., NDArray[np.uint8]]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
ODD = "<script>alert(1)</script>\"&'{{ 7 * 7 }}"


class Page(html.parser.HTMLParser):
    """What a page asks for, its tags and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "action", "data"}]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def analysis(make_image: MakeImage, detector: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Analysis]:
    path = tmp_path_factory.mktemp("report") / "grün (1).png"
    path.write_bytes(cv2.imencode(".png", make_image(300, 500))[1].tobytes())
    model = relabelled(detector, Label(ODD), Label("right"))
    with analyze(path, model, budget=0.5, audit=0.05, precision="fp32") as made:
        regions = tuple(replace(r, route=(0, 3, 7)) for r in made.regions)
        yield replace(made, regions=regions, failures=(f"a part {ODD}",))


@pytest.fixture(scope="module")
def saved(analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result on disk; tests that change it take a copy."""
    return analysis.save(tmp_path_factory.mktemp("saved") / "out")


def test_a_page_shows_the_specialists_that_read_finds(analysis: Analysis, tmp_path: Path) -> None:
    earned = {"7": {"measure": "wrong", "items": 1234, "before": 0.25, "after": 0.125}}
    model = {**analysis.provenance["model"], "earned": earned}
    known = replace(analysis, provenance={**analysis.provenance, "model": model})
    page = Page(write_report(known, tmp_path / "report.html"))
    assert "Specialists that read finds" in page.text
    assert "wrong 25.0% \u2192 12.5% of 1,234 held out" in page.text
    silent = Page(write_report(analysis, tmp_path / "silent.html"))
    assert "Specialists that read finds" in silent.text
    assert "held out" not in silent.text
    assert silent.tags.count("img") == page.tags.count("img")
    none = replace(analysis, regions=tuple(replace(r, route=()) for r in analysis.regions))
    assert "Specialists" not in Page(write_report(none, tmp_path / "none.html")).text


@pytest.mark.parametrize(
    "earned",
    [
        *(None, "x", ["x"], {"7": "abc"}, {"7": {}}, {"7": {"measure": "wrong"}}, {"3": {"before": 1}}),
        *({"7": {"measure": [], "items": "9", "before": None, "after": 1}},),
        {"7": {"measure": "loss", "items": 10**400, "before": 0.5, "after": 0.25}},
    ],
)
def test_records_of_strangers_do_not_hinder_a_report(analysis: Analysis, tmp_path: Path, earned: object) -> None:
    model = {**analysis.provenance["model"], "earned": earned}
    odd = replace(analysis, provenance={**analysis.provenance, "model": model})
    page = Page(write_report(odd, tmp_path / "report.html"))
    assert "Specialists that read finds" in page.text
    assert "held out" not in page.text
    write_report(replace(analysis, provenance={"model": earned}), tmp_path / "report.html")


def test_specialists_of_several_bands_are_not_mixed(analysis: Analysis, tmp_path: Path) -> None:
    model = {**analysis.provenance["model"], "bands": [{}]}
    several = replace(analysis, provenance={**analysis.provenance, "model": model})
    assert "Specialists" not in Page(write_report(several, tmp_path / "report.html")).text


def test_specialists_are_listed_without_the_image(saved: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(saved, tmp_path / "out")
    record = json.loads((copy / "analysis.json").read_text("utf-8"))
    record["image"]["path"] = str(tmp_path / "none.png")
    (copy / "analysis.json").write_text(json.dumps(record), "utf-8")
    page = Page(write_report(Analysis.load(copy), tmp_path / "report.html"))
    assert "pictures are missing" in page.text
    assert "Specialists that read finds" in page.text


def test_a_page_holds_all_and_asks_for_nothing(analysis: Analysis, tmp_path: Path) -> None:
    page = Page(write_report(analysis, tmp_path / "report.html"))
    assert page.links
    assert all(link.startswith("data:image/") for link in page.links)
    assert page.tags.count("script") == 1
    assert page.tags.count("figure") > 3
    for part in (
        "500 x 300 px",
        f"{len(analysis.regions):,}",
        f"a part {ODD}",
        "feature",
        "route 0 \u2192 3 \u2192 7",
        "GMAC",
        "scan",
        "refinement",
        "audit",
        ODD,
    ):
        assert part in page.text


def test_equal_analyses_make_equal_pages(analysis: Analysis, tmp_path: Path) -> None:
    slower = replace(analysis, cost=replace(analysis.cost, scan_seconds=9.0, chunks=7))
    pages = [write_report(a, tmp_path / f"{i}.html").read_bytes() for i, a in enumerate((analysis, slower))]
    assert pages[0] == pages[1]


@pytest.mark.parametrize("shape", [(1, 1), (5, 900), (900, 5)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_any_shape_and_nothing_found(
    make_image: MakeImage, detector: Model, tmp_path: Path, shape: tuple[int, int]
) -> None:
    for budget in (None, 1.0):
        made = replace(analyze(make_image(*shape, 1), detector, budget=budget), regions=())
        assert "Nothing was found." in Page(write_report(made, tmp_path / "r.html")).text


def test_without_the_image_the_rest_is_told(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "out")
    record = json.loads((folder / "analysis.json").read_text("utf-8"))
    record["image"]["path"] = str(tmp_path / "gone.png")
    (folder / "analysis.json").write_text(json.dumps(record), "utf-8")
    page = Page(write_folder_report(folder))
    assert "pictures are missing" in page.text
    assert "gone.png" in page.text
    assert page.links == []
    assert ODD in page.text


def test_the_surest_are_drawn_by_class() -> None:
    regions = [
        Region("a", 0.9, (0, 0, 10, 20)),
        Region("b", 0.8, (5, 5, 6, 6)),
        Region("b", 0.7, (0, 0, 30, 40), ((0, 0), (0, 40), (30, 40))),
    ]
    first, second = layers(regions, 4, css_colours("ab"))
    assert (first.name, first.count) == ("b", 2)
    assert first.path == "M3.5 3.5H7.5V7.5H3.5ZM0.0 0.0L40.0 0.0L40.0 30.0Z"
    assert second.path == "M0.0 0.0H20.0V10.0H0.0Z"
    assert re.fullmatch("#[0-9a-f]{6}", first.colour)


@pytest.mark.parametrize(
    ("audit", "text"),
    [
        (Audit((Part("object", 94, 4.0, (1, 6), 0.95, 1.0, certain=False),), 0.95, 50, 5, 8), "94 to 99 %"),
        (Audit((Part("object", 94, 4.0, (0, 6), 0.95, 1.0, certain=False),), 0.95, 50, 5, 8, 0.9), "at least 94 %"),
        (Audit((Part("object", 3, float("nan"), (0, 6), 0.95, 1.0, certain=False),), 0.95, 50, 0, 8), "unknown"),
    ],
)
def test_bounds_of_recall_are_not_flattered(audit: Audit, text: str) -> None:
    assert recall_text(audit) == text


# Batches


@pytest.fixture
def batch(saved: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "batch"
    for name in ("one", "two #2"):
        shutil.copytree(saved, folder / name)
    return folder


def test_a_folder_of_results_gets_a_page_and_each_result_its_own(batch: Path, analysis: Analysis) -> None:
    page = Page(write_folder_report(batch))
    assert [link for link in page.links if not link.startswith("data:")] == [
        "one/report.html",
        "two%20%232/report.html",
    ]
    assert sum(link.startswith("data:image/jpeg") for link in page.links) == 2
    assert (batch / "one" / "report.html").is_file()
    assert f"{2 * len(analysis.regions):,}" in page.text
    assert ODD in page.text
    assert page.tags.count("tr") == 3


def test_work_that_is_not_done_gets_no_page(batch: Path) -> None:
    (batch / "one").rename(batch / ".part")
    (batch / "deep").mkdir()
    (batch / "two #2").rename(batch / "deep" / "two")
    facts = {"name": "deep/two", "source": "two.png", "status": "waiting"}
    (batch / "batch.json").write_text(json.dumps({"results": [facts]}), "utf-8")
    assert "deep/two/report.html" in Page(write_folder_report(batch)).links
    assert not (batch / ".part" / "report.html").exists()


def test_failures_of_a_batch_are_listed(batch: Path) -> None:
    facts = {"name": "one", "source": "one.png", "status": "done", "regions": 1, "labels": {"a": 1}, "share": 0.1}
    facts |= {"macs": 10, "exhaustive_macs": 100, "shape": [5, 6, 3], "complete": False, "failures": []}
    bad = {
        "name": "bad",
        "source": f"bad{ODD}.svs",
        "status": "failed",
        "error": f"bad{ODD}.svs: empty",
        "traceback": f"File {ODD}",
    }
    (batch / "batch.json").write_text(json.dumps({"results": [facts, bad]}), "utf-8")
    page = Page(write_batch_report(batch))
    for part in ("Failures", f"bad{ODD}.svs", f"File {ODD}", "empty", "10 %", "done, incomplete"):
        assert part in page.text
    assert page.text.count(f"bad{ODD}.svs") == 1  # not again in the error
    (batch / "batch.json").rename(batch / "batch-1-of-2.json")
    (batch / "batch-2-of-2.json").write_text(json.dumps({"results": [{**bad, "name": "worse"}]}), "utf-8")
    assert Page(write_batch_report(batch)).tags.count("tr") == 4


@pytest.mark.parametrize("text", ["{nope", "[]", "{}", '{"results": [{}]}', '{"results": [3]}'])
def test_a_record_that_is_damaged_is_named(batch: Path, text: str) -> None:
    (batch / "batch.json").write_text(text)
    with pytest.raises(ValueError, match=r"batch\.json is damaged, or was not written by coarse2fine"):
        write_folder_report(batch)


@pytest.mark.parametrize("text", ["{nope", "[]", '{"image": 3}'])
def test_a_result_that_is_damaged_hides_no_other(batch: Path, text: str) -> None:
    (batch / "one" / "analysis.json").write_text(text)
    page = Page(write_folder_report(batch))
    assert "the result cannot be read" in page.text
    assert any("two%20%232" in link for link in page.links)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no results: expected batch\.json, or folders with"):
        write_folder_report(tmp_path)


# Notebooks


def test_a_notebook_shows_a_picture_and_the_account(analysis: Analysis) -> None:
    shown = analysis._repr_html_()
    assert "data:image/jpeg" in shown
    assert "of the exhaustive pass" in shown
    assert "<script>" not in shown


def test_a_notebook_needs_no_image(saved: Path) -> None:
    loaded = Analysis.load(saved)
    loaded.image.close()
    assert "<img" not in loaded._repr_html_()


# In a browser


def shot(url: str, picture: Path, width: int, height: int, profile: Path) -> tuple[NDArray[np.uint8], str]:
    """The page as a browser shows it, and what it complains of."""
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    options += [f"--window-size={width},{height}", f"--screenshot={picture}", f"--user-data-dir={profile}"]
    done = subprocess.run([BROWSER, *options, url], capture_output=True, text=True, timeout=120, check=True)
    pixels = cv2.imread(str(picture))
    assert pixels is not None
    return np.asarray(pixels, np.uint8), "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_without_complaint(analysis: Analysis, batch: Path, tmp_path: Path, width: int) -> None:
    probe = "<script>new Image().src='x'</script>"
    for path in (write_report(analysis, tmp_path / "report.html"), write_batch_report(batch)):
        pixels, complaints = shot(path.as_uri(), tmp_path / "shot.png", width, 900, tmp_path / "profile")
        assert complaints == ""
        assert pixels.shape[1] == width
        assert pixels.std() > 10
        assert (pixels[:, -3:] == pixels[0, -1]).mean() > 0.9  # nothing reaches beyond the right edge
    # The page's own rules hold where something did get into it.
    evil = tmp_path / "evil.html"
    evil.write_text(path.read_text("utf-8").replace("</main>", f"{probe}</main>"), "utf-8")
    assert "Content Security Policy" in shot(evil.as_uri(), tmp_path / "s.png", width, 900, tmp_path / "profile")[1]
