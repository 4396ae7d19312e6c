"""Names and messages of strangers are shown as text, and do nothing to the terminal or a spreadsheet."""

from __future__ import annotations

import builtins
import csv
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from coarse2fine.batch.run import analyze_folder
from coarse2fine.cli.main import main
from coarse2fine.demo import digit_scene
from coarse2fine.model import Model
from coarse2fine.results.tables import write_csv
from coarse2fine.terminal import printable

MakeImage = Callable[..., NDArray[np.uint8]]
STEERING = {"\x1b", "\x07", "\x08", "\r", "\x9b", "\u202e", "\u2066", "\u2028"}


def test_every_control_character_is_escaped_and_nothing_else() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        shown = printable(character)
        steers = unicodedata.category(character) in ("Cc", "Zl", "Zp") or (
            unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        )
        assert (shown == character) != steers or character in "\u061c\u200e\u200f\ufeff", hex(number)
        if steers:
            assert shown.isascii()
            assert shown.encode("ascii").decode("unicode_escape") == character


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such names there")
@pytest.mark.parametrize("quiet", [True, False])
def test_names_with_escape_sequences_reach_no_terminal(
    tmp_path: Path, make_image: MakeImage, detector: Model, capsys: pytest.CaptureFixture[str], quiet: bool
) -> None:
    evil = "a\x1b]0;owned\x07\x1b[2J\x9b1A\u202egnp\u2066\u2028\nb: 100 found"
    model = detector.save(tmp_path / "tiny.c2f")
    for name, content in ((f"{evil}.png", b"no image"), (f"good {evil}.png", None)):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content or cv2.imencode(".png", make_image(64, 64))[1].tobytes())
    more = ["-q"] if quiet else []
    assert main(["analyze", str(path.parent), "-o", str(tmp_path / "out"), "-m", str(model), "-n", "0", *more]) == 1
    assert main(["analyze", str(path.parent), "-o", str(tmp_path / "new"), "-m", str(model), "--dry-run"]) == 1
    assert main(["info", str(path)]) == 0
    assert main(["info", str(path.with_name(f"{evil}.png"))]) == 1
    assert main(["analyze", str(path), "-o", str(tmp_path / "one"), "-m", str(model), *more]) == 0
    printed = "".join(capsys.readouterr())
    assert "owned" in printed
    assert not set(printed) & STEERING
    assert not any(line.startswith("b: 100 found") for line in printed.splitlines())


@pytest.mark.parametrize("first", list("=+-@\t\r"))
def test_no_cell_is_a_formula(tmp_path: Path, make_image: MakeImage, detector: Model, first: str) -> None:
    write_csv(tmp_path / "t.csv", {"fired": np.array([f"{first}1+1", "plain"], object), "score": np.array([-1.5, 2.0])})
    with (tmp_path / "t.csv").open(newline="") as file:
        names, (fired, score), plain = csv.reader(file)
    assert (names, score, plain) == (["fired", "score"], "-1.5", ["plain", "2.0"])
    assert fired == {"\t": r"\t1+1", "\r": r"\r1+1"}.get(first, f"'{first}1+1")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such names there")
@pytest.mark.usefixtures("plain_pictures")
def test_no_cell_of_a_batch_is_a_formula(
    tmp_path: Path, make_image: MakeImage, detector: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["=cmd|'x'!A1.png", "+1.png", "-1.png", "@sum.png"]
    for name in names:
        Path(name).write_bytes(cv2.imencode(".png", make_image(64, 64))[1].tobytes())
    Path("=bad.png").write_bytes(b"no image")
    analyze_folder([*names, "=bad.png"], "out", detector, workers=0, report=False)
    with Path("out/batch.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert all(row["name"].startswith(("'=", "'+", "'-", "'@")) for row in rows)
    assert not any(str(value).startswith(tuple("=+-@")) for row in rows for value in row.values())
    assert all(float(row["share"]) > 0 for row in rows if row["status"] == "done")


@pytest.mark.parametrize(
    ("package", "extra", "command"),
    [("h5py", "features", ["tiles", "RESULT", "-o", "tiles.h5"]), ("sklearn", "demo", ["benchmark", "scenes"])],
)
def test_a_missing_extra_is_one_line(
    tmp_path: Path,
    make_image: MakeImage,
    detector: Model,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    extra: str,
    command: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(cv2.imencode(".png", make_image(64, 64))[1].tobytes())
    detector.save("tiny.c2f")
    assert main(["analyze", "a.png", "-o", "RESULT", "-m", "tiny.c2f", "-q", "--no-report"]) == 0
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    # What other tests have drawn must not stand in for the package.
    monkeypatch.setattr(digit_scene, "_handwriting", digit_scene._handwriting.__wrapped__)
    capsys.readouterr()
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not installed" in line
    assert line.endswith(f'pip install "coarse2fine[{extra}]", or in a checkout: pip install -e ".[{extra}]"')
