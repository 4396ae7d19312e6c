"""Several experts with an output each: one analysis, in which each has its own tiles, finds and audit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from coarse2fine import Analysis, Audit, ExpertError, Model, analyze, analyze_folder, load_model, open_image
from coarse2fine.bundle import packed
from coarse2fine.cli.main import main
from coarse2fine.experts.again import all_again, listed
from coarse2fine.experts.outputs import check_outputs
from coarse2fine.model_file import read_model_file
from coarse2fine.models.errors import ModelError
from tests.experts.scenes import Finder, Pixels, disc_expert, in_image, model_of, once, owned, scene

SIDES = {"discs": 64, "ground": 96}
"""Side of each expert's tiles: their cells have a grid of 32 px in common."""


def light(pixels: Pixels) -> Any:
    """Map of the light parts."""
    return (pixels[..., 0] > 100).astype(np.float32)[:, None]


def make_discs() -> Any:
    return Finder()


def make_ground() -> Any:
    return Finder(light)


TEXTS = {name: f"tests.experts.test_outputs:make_{name}" for name in SIDES}


def both(discs: Finder | None = None, ground: Finder | None = None, **options: Any) -> Model:
    """A model with boxes of discs and a map of light ground."""
    found = disc_expert(discs or Finder(), tile=SIDES["discs"], most=4)
    areas = disc_expert(
        ground or Finder(light), kind="map", tile=SIDES["ground"], context=0, cell=8, labels=["light"], batch=4
    )
    made = {"discs": found, "ground": areas}
    first, second = (
        model_of(replace(each, spec=TEXTS[name]), output=name, provenance={"recall_target": 0.9}, **options)
        for name, each in made.items()
    )
    return replace(first, others=(second,))


@pytest.fixture(scope="module")
def image() -> Pixels:
    made = scene(520, 640, 60, seed=4)
    made[:200, :320] = 30  # nothing here
    return made


def keys(result: Analysis, *labels: str) -> list[tuple[Any, ...]]:
    return [(r.label, r.score, r.full_box) for r in result.regions if r.label in labels]


DISCS, GROUND = ("dim", "bright"), ("light",)


def test_each_answers_as_if_it_were_alone(image: Pixels) -> None:
    model = both()
    whole, alone = analyze(image, model, budget=1.0), [analyze(image, each, budget=1.0) for each in model.bands]
    assert keys(whole, *DISCS) == keys(alone[0], *DISCS)
    assert keys(whole, *GROUND) == keys(alone[1], *GROUND)
    assert len(whole.regions) == sum(len(each.regions) for each in alone)
    wanted = in_image(once(owned(image, disc_expert())), image)
    assert [box for _, _, box in keys(whole, *DISCS)] == [box for _, _, box in wanted]
    assert whole.cost.macs == sum(each.cost.macs for each in alone)
    assert whole.cell == 32
    assert whole.refined.shape == (17, 20)
    assert whole.refined.all()


def test_the_image_is_opened_once_and_each_runs_on_its_own_tiles(image: Pixels) -> None:
    discs, ground = Finder(), Finder(light)
    with open_image(image) as opened:
        chosen = analyze(opened, both(discs, ground), audit=0)
    assert {shape[1] for shape in discs.calls} == {80}
    assert {shape[1] for shape in ground.calls} == {96}
    tiles = [sum(shape[0] for shape in finder.calls) for finder in (discs, ground)]
    assert 0 < tiles[0] < 90
    assert 0 < tiles[1] < 42
    assert chosen.cost.refine_macs == sum(tiles) * 10**7
    assert not chosen.refined.all()


def test_a_budget_is_divided_by_what_each_costs_everywhere(image: Pixels) -> None:
    discs, ground = Finder(), Finder(light)
    found = analyze(image, both(discs, ground), budget=0.5)
    tiles = [sum(shape[0] for shape in finder.calls) for finder in (discs, ground)]
    assert 0.4 * 90 <= tiles[0] <= 0.5 * 90
    assert 0.4 * 42 <= tiles[1] <= 0.5 * 42
    assert 0.4 < found.cost.share <= 0.5
    assert analyze(image, both(), cells=7).cost.cells_refined <= 7


def test_each_has_its_own_audit(image: Pixels) -> None:
    found = analyze(image, both(), recall=0.8)
    audit = found.audit
    assert audit is not None
    assert [(part.kind, part.output) for part in audit.kinds] == [("object", "discs"), ("area", "ground")]
    assert audit.certified
    assert all(part.confidence == pytest.approx(0.975) for part in audit.kinds)
    assert "objects of discs at least" in str(audit)
    assert "cells of areas of ground at least" in str(audit)
    assert Audit.from_json(audit.to_json()) == audit


def test_samples_are_pooled_apart(image: Pixels) -> None:
    samples = [analyze(image, both(), audit=0.2, seed=seed).audit for seed in range(2)]
    pooled = Audit.pooled(samples)
    assert [part.output for part in pooled.kinds] == ["discs", "ground"]
    for number, part in enumerate(pooled.kinds):
        assert part.found == sum(each.kinds[number].found for each in samples if each is not None)


def test_intervals_of_each_hold_its_finds(image: Pixels) -> None:
    """What each would find everywhere lies in its interval, in at least 9 of 10 analyses at 95 %."""
    model = both(tau=0.1)
    whole = analyze(image, model, budget=1.0, audit=0.01).audit
    assert whole is not None
    truth = [part.found for part in whole.kinds]
    assert truth[0] == sum(map(len, owned(image, disc_expert()).values()))
    held = np.zeros(2, int)
    for seed in range(10):
        audit = analyze(image, model, audit=0.25, seed=seed).audit
        assert audit is not None
        for number, part in enumerate(audit.kinds):
            low, high = part.missed_interval
            assert part.found < truth[number]
            held[number] += low <= truth[number] - part.found <= high
    assert (held >= 9).all()


def test_the_audit_of_one_is_kept_if_the_other_says_nothing(image: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coarse2fine.config.AUDIT", 0.6)
    nothing = Finder(lambda pixels: np.zeros((len(pixels), 1, 96, 96), np.float32))
    audit = analyze(image, both(ground=nothing, tau=0.1)).audit
    assert audit is not None
    assert [np.isnan(part.missed) for part in audit.kinds] == [False, True]
    assert "cells of areas of ground unknown" in str(audit)
    assert Audit.from_json(audit.to_json()).to_json() == audit.to_json()
    with pytest.raises(ValueError, match="pooled"):
        Audit.pooled([audit])


def test_failures_name_the_expert_that_failed(image: Pixels) -> None:
    def now_and_then(pixels: Pixels) -> Any:
        if (pixels.reshape(len(pixels), -1).max(axis=1) > 100).any():
            raise RuntimeError("too light for me")
        return np.zeros((len(pixels), 1, 96, 96), np.float32)

    result = analyze(image, both(ground=Finder(now_and_then)), budget=1.0, audit=0)
    assert result.failures
    assert all(each.startswith("ground: the expert failed on the tile at y=") for each in result.failures)
    assert keys(result, *DISCS)


def test_a_file_holds_all_and_they_are_named_again(image: Pixels, tmp_path: Path) -> None:
    model = both()
    path = model.save(tmp_path / "m.c2f")
    loaded = load_model(path)
    assert [each.output for each in loaded.bands] == ["discs", "ground"]
    assert loaded.save(tmp_path / "again.c2f").read_bytes() == path.read_bytes()
    assert "ground (light): scan at" in str(loaded)
    wanted = analyze(image, model, budget=1.0)
    turned = dict(reversed(TEXTS.items()))
    for given in (TEXTS, turned, list(TEXTS.values()), {"discs": [TEXTS["discs"]], "ground": TEXTS["ground"]}):
        assert analyze(image, path, expert=given, budget=1.0).regions == wanted.regions
    for wrong in (
        TEXTS["discs"],
        {"discs": TEXTS["discs"]},
        {**TEXTS, "nuclei": TEXTS["discs"]},
        [*TEXTS.values()] * 2,
    ):
        with pytest.raises(ExpertError, match=r"in this order: 'discs=tests.*, 'ground=tests"):
            analyze(image, path, expert=wrong)
    record = analyze(image, path, expert=TEXTS, budget=1.0).provenance["model"]
    assert (record["output"], record["labels"]) == ("discs", list(DISCS))
    assert [(band["output"], band["labels"]) for band in record["bands"]] == [("ground", list(GROUND))]


def test_results_are_saved_and_read(image: Pixels, tmp_path: Path) -> None:
    found = analyze(image, both(), audit=0.2)
    read = Analysis.load(found.save(tmp_path / "result"), image)
    assert sorted(map(str, keys(read, *DISCS, *GROUND))) == sorted(map(str, keys(found, *DISCS, *GROUND)))
    assert read.audit == found.audit
    np.testing.assert_array_equal(read.refined, found.refined)
    np.testing.assert_array_equal(read.plan.cell_corners, found.plan.cell_corners)


@pytest.mark.usefixtures("plain_pictures")
def test_folders_and_the_command_line(image: Pixels, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, path = tmp_path / "images", both().save(tmp_path / "m.c2f")
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), image)
    wanted = analyze(image, both(), budget=1.0).regions
    batch = analyze_folder(folder, tmp_path / "out", path, expert=TEXTS, workers=0, budget=1.0, report=False)
    assert batch.ok
    assert Analysis.load(tmp_path / "out" / "a.png").regions == wanted
    given = [part for name, text in reversed(TEXTS.items()) for part in ("--expert", f"{name}={text}")]
    command = ["analyze", str(folder), "-m", str(path), "-n", "0", "-q", "--budget", "1", "--no-report"]
    assert main([*command, "-o", str(tmp_path / "cli"), *given]) == 0
    assert Analysis.load(tmp_path / "cli" / "a.png").regions == wanted
    capsys.readouterr()
    assert main([*command, "-o", str(tmp_path / "dry"), "--dry-run", *given]) == 0
    assert "1 image(s) to do" in capsys.readouterr().out
    assert main([*command, "-o", str(tmp_path / "no"), *given[:2]]) == 1
    assert "discs=tests" in capsys.readouterr().err + (tmp_path / "no" / "batch.json").read_text()
    assert main([*command, "-o", str(tmp_path / "no"), *given[:2], "--expert", TEXTS["discs"]]) == 1
    assert "name all outputs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "output", "message"),
    [
        ({"labels": ["dim", "x"]}, "other", "both have the label 'dim'"),
        ({"labels": ["x", "y"]}, "an other", "letters, digits and _"),
        ({"labels": ["x", "y"], "tile": 66}, "other", "64 and 66 px have no common grid"),
    ],
)
def test_experts_that_cannot_be_joined_are_refused(options: dict[str, Any], output: str, message: str) -> None:
    with pytest.raises(ExpertError, match=message):
        check_outputs({"discs": disc_expert(), output: disc_expert(**options)})


@pytest.mark.parametrize("output", ["", "discs"])
def test_outputs_need_names_of_their_own(output: str) -> None:
    first, second = model_of(disc_expert(), output="discs"), model_of(disc_expert(labels=["x", "y"]), output=output)
    with pytest.raises(ValueError, match="a name of"):
        replace(first, others=(second,))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = both().save(tmp_path / "m.c2f")
    for changed in ({"output": ""}, {"output": 5}, {"output": ["discs"]}):
        arrays, text = read_model_file(path)
        other = tmp_path / "damaged.c2f"
        other.write_bytes(packed(arrays, text | changed))
        with pytest.raises(ModelError):
            load_model(other)


def test_given_experts_are_listed_with_their_outputs() -> None:
    a, b, c = (disc_expert() for _ in range(3))
    assert listed(a) == (("", a),)
    assert listed([a, "b"]) == (("", a), ("", "b"))
    pairs = listed({"x": [a, b], "y": c})
    assert pairs == (("x", a), ("x", b), ("y", c))
    assert listed(pairs) == pairs
    assert all_again([("x", a), ("x", b), ("y", c)], {"y": c, "x": [a, b]}) == [a, b, c]
