"""Several experts: an output for each, and alternatives, from scenes to an analysis on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from coarse2fine import Analysis, AnnotationError, ExpertError, analyze, expert, fit, load_model
from coarse2fine.cli.experts import by_output
from coarse2fine.cli.main import main
from coarse2fine.experts.expert import Expert
from coarse2fine.experts.refiner import ExpertRefiner
from tests.fitting.watching.discs import bright, dark

Pixels = NDArray[np.uint8]
HOME = "tests.fitting.watching.discs:make_"
DISCS = HOME + 'dark {"tile": 64, "context": 8, "labels": ["dark"], "tile_macs": 5000000}'
GROUND = HOME + 'bright {"kind": "map", "labels": ["field"], "tile_macs": 9000000}'


def scene(seed: int, side: int = 448) -> Pixels:
    """Dark discs on the left half, and bright squares on the right one, on a noisy ground."""
    rng = np.random.default_rng(seed)
    image = rng.normal(110, 6, (side, side))
    for y, x in rng.integers(0, (side - 70, side // 2 - 70), (3, 2)).tolist():
        image[y : y + 60, x + side // 2 : x + side // 2 + 60] += 90
    image = image.clip(0, 255).astype(np.uint8)
    for y, x in rng.integers(12, (side - 12, side // 2), (25, 2)).tolist():
        cv2.circle(image, (x, y), 7, 20, -1)
    return np.repeat(image[..., None], 3, axis=2)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for seed in range(2):
        cv2.imwrite(str(folder / f"scene{seed}.png"), scene(seed))
    return folder


def found(result: Analysis, label: str) -> list[tuple[float, ...]]:
    return [(r.score, *r.full_box) for r in result.regions if r.label == label]


@pytest.mark.slow
def test_an_output_for_each_expert_on_the_command_line(scenes: Path, tmp_path: Path) -> None:
    path, cache = tmp_path / "both.c2f", str(tmp_path / "answers")
    named = ["--expert", f"discs={DISCS}", "--expert", f"ground={GROUND}"]
    common = ["--tile", "96", "--watch", "1.0", "--steps", "10", "--recall", "0.9", "--cache", cache, "-q"]
    assert main(["fit", str(scenes), *named, *common, "-o", str(path)]) == 0
    model = load_model(path)
    assert [each.output for each in model.bands] == ["discs", "ground"]
    assert [(name, each.tile, each.kind) for name, each in model.experts] == [
        ("discs", 64, "boxes"),
        ("ground", 96, "map"),
    ]
    assert str(model).count("forecast from") == 2
    assert len({band.tau for band in model.bands}) == 2  # each its own
    image, out = scenes / "scene1.png", tmp_path / "out"
    assert main(["analyze", str(image), "-m", str(path), "-q", "--cache", cache, "-o", str(out), *named]) == 0
    result = Analysis.load(out)
    given = {"discs": expert(dark, tile=64, context=8, labels=["dark"]), "ground": _field()}
    whole = analyze(image, path, expert=given, budget=1.0)
    assert set(found(result, "dark")) <= set(found(whole, "dark"))
    assert found(result, "field")
    assert len(found(result, "dark")) >= 0.75 * len(found(whole, "dark")) > 10
    notes = json.loads((out / "analysis.json").read_text())["notes"]
    assert [note.partition(":")[0] for note in notes if "forecast" in note] == ["discs", "ground"]


def _field() -> Expert:
    return expert(bright, tile=96, kind="map", labels=["field"])


@pytest.mark.slow
def test_alternatives_on_the_command_line(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The alternative gives what the expert gives wherever there is a dark disc, for a tenth of the cost."""
    path = tmp_path / "two.c2f"
    both = ["--expert", DISCS, "--expert", HOME + 'blind {"tile_macs": 500000}']
    common = [
        "--tile",
        "64",
        "--context",
        "8",
        "--labels",
        "dark",
        "--watch",
        "1.0",
        "--steps",
        "10",
        "--recall",
        "0.9",
    ]
    assert main(["fit", str(scenes), *both, *common, "--recall", "0.9", "-q", "-o", str(path)]) == 0
    assert "choice between the experts at 90%" in capsys.readouterr().out
    model = load_model(path)
    assert isinstance(model.refiner, ExpertRefiner)
    assert model.refiner.routes is not None
    assert [each.tile_macs for _, each in model.experts] == [5_000_000, 500_000]
    command = ["analyze", str(scenes / "scene0.png"), "-m", str(path), "-q", "-o"]
    assert main([*command, str(tmp_path / "one"), *both[:2]]) == 1
    assert "expected all experts of the model in this order" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "out"), *both]) == 0
    assert "tiles, by clusters of the scan's features" in capsys.readouterr().out
    assert found(Analysis.load(tmp_path / "out"), "dark")


def test_outputs_are_checked_before_the_work(scenes: Path) -> None:
    discs = expert(dark, tile=64, labels=["dark"])
    with pytest.raises(ExpertError, match="both have the label 'dark'"):
        fit(scenes, expert={"a": discs, "b": discs})
    with pytest.raises(ValueError, match="at least one output"):
        fit(scenes, expert={})
    with pytest.raises(ValueError, match=r"made by coarse2fine\.expert"):
        fit(scenes, expert={"a": discs, "b": "onnx:b.onnx"})  # type: ignore[dict-item]
    square = {"type": "Polygon", "coordinates": [[[5, 5], [20, 5], [20, 20], [5, 20], [5, 5]]]}
    feature = {"type": "Feature", "geometry": square, "properties": {"classification": {"name": "cat"}}}
    with pytest.raises(AnnotationError, match=r"cat are none of the experts' \(dark, field\)"):
        fit(
            [scene(0)],
            {"type": "FeatureCollection", "features": [feature]},
            expert={"discs": discs, "ground": _field()},
            progress=False,
        )


def test_texts_are_sorted_by_their_outputs() -> None:
    assert by_output(["onnx:a=b.onnx", "c.d:e"], str) == ["onnx:a=b.onnx", "c.d:e"]
    assert by_output(["x=a:b", "y=c:d", 'x=e:f {"g": "h=1"}'], str) == {"x": ["a:b", 'e:f {"g": "h=1"}'], "y": ["c:d"]}
    with pytest.raises(ValueError, match="or none"):
        by_output(["x=a:b", "c:d"], str)
