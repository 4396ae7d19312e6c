"""Fitting end to end on a small scene, and what `fit` refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import dask
import numpy as np
import pytest
import timm
import torch

from coarse2fine import AnnotationError, Geometry, ImageError, Model, analyze, fit, load_model
from coarse2fine.fitting.explorer import fit_explorer
from coarse2fine.fitting.optimise import train
from coarse2fine.fitting.pairs import load_pairs
from coarse2fine.models.gate import Gate
from coarse2fine.models.runtime import Runtime
from coarse2fine.refiners.net import net_of
from coarse2fine.tiling.opening import open_image
from tests.fitting.discs import QUICK, RADIUS, SIDE, collection, discs, feature, smaller
from tests.refining import net, with_specialists

# Small scenes are quick; a test of its own holds that this is told.
pytestmark = pytest.mark.filterwarnings("ignore:hardly anything was found in the held-out parts:UserWarning")


@pytest.fixture(scope="module")
def small_steps() -> Iterator[None]:
    """See `smaller`."""
    with smaller(slim=True):
        yield


def test_a_fitted_model_finds_discs_it_has_never_seen(fitted: Model, tmp_path: Path) -> None:
    (pixels, _), centres = discs(1)
    assert fitted.name == "discs"
    assert [label.name for label in fitted.labels] == ["disc"]
    assert fitted.channels == 1
    told = fitted.provenance["read_as"]
    assert (told["channels"], told["picked"], told["value_range"], told["mpp"]) == ([0], False, [0.0, 255.0], None)
    whole = analyze(pixels, fitted, budget=1.0, precision="fp32")
    found = np.array([r.full_centre for r in whole.regions])
    distance = np.linalg.norm(found[:, None] - centres[None], axis=2)
    assert (distance.min(axis=0) < RADIUS).mean() > 0.85
    assert (distance.min(axis=1) < RADIUS).mean() > 0.7
    sizes = np.array([r.full_box for r in whole.regions])[:, 2:] - np.array([r.full_box for r in whole.regions])[:, :2]
    assert np.median(sizes) == pytest.approx(2 * RADIUS + 1, rel=0.35)
    some = analyze(pixels, fitted, precision="fp32")
    assert some.cost.cells_refined < whole.cost.cells_refined
    assert len(some.regions) > 0.7 * len(whole.regions)
    again = load_model(fitted.save(tmp_path / "discs.c2f"))
    assert analyze(pixels, again, precision="fp32").regions == some.regions
    assert json.loads(json.dumps(dict(again.provenance))) == again.provenance
    assert again.provenance["objects"] == 40


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_luck_alone(small_steps: None) -> None:
    pixels, annotations = discs(2)[0]
    torch.manual_seed(7)
    luck = torch.get_rng_state()
    first, again = (fit([pixels], [annotations], steps=10, **QUICK) for _ in range(2))
    other = fit([pixels], [annotations], steps=10, seed=1, **QUICK)
    for nets in ([m.base for m in (first, again, other)], [net_of(m.refiner) for m in (first, again, other)]):
        a, b, c = (net.state_dict() for net in nets)
        assert all(torch.equal(a[k], b[k]) for k in a)
        assert not all(torch.equal(a[k], c[k]) for k in a)
    assert (first.threshold, first.tau, first.window) == (again.threshold, again.tau, again.window)
    assert torch.equal(torch.get_rng_state(), luck)


@pytest.mark.slow
def test_a_network_of_timm_can_scan(small_steps: None, tmp_path: Path) -> None:
    pixels, annotations = discs(0)[0]
    name = "mobilenetv3_small_050"
    whole = timm.create_model(name)
    weights = tmp_path / "weights.pth"
    torch.save(whole.state_dict(), weights)
    options: dict[str, Any] = {"base": f"timm:{name}", "steps": 10, **QUICK}
    luck = torch.get_rng_state()
    tuned, random = (fit([pixels], [annotations], base_weights=w, **options) for w in (weights, "none"))
    assert torch.equal(torch.get_rng_state(), luck)
    assert [m.provenance["base_weights"] for m in (tuned, random)] == ["weights.pth", "none"]
    again = fit([pixels], [annotations], base_weights="none", **options)
    state = random.base.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.base.state_dict().items())
    weights.unlink()
    scene = discs(1)[0][0]
    for model in (tuned, random):
        assert str(model.base.spec).startswith(f"timm:{name} ")
        some = analyze(scene, model, precision="fp32")
        assert analyze(scene, model.save(tmp_path / "model.c2f"), precision="fp32").regions == some.regions
        assert some.interest.max() > 2 * some.interest.min()


@pytest.mark.slow
def test_the_cheapest_geometry_is_found_by_measuring(small_steps: None) -> None:
    pixels, annotations = discs(0)[0]
    for minimise in ("macs", "seconds"):
        model = fit(
            [pixels],
            [annotations],
            geometry="search",
            minimise=minimise,
            steps=20,
            **QUICK,
        )
        told = model.provenance
        assert told["minimised"] == minimise
        assert len(told["cost_without_glances"]) >= 3
        assert 0 < told["cost"] <= min(told["cost_without_glances"].values())
        g = model.geometry
        scan = f"scan 1/{g.scan_downsample}, cells of {g.cell} px, "
        assert any(each.startswith(scan) for each in told["cost_without_glances"])
        with analyze(pixels, model) as analysis:
            assert analysis.regions


@pytest.mark.slow
def test_a_geometry_of_ones_own(small_steps: None) -> None:
    pixels, annotations = discs(0)[0]
    mine = Geometry(cell=16, scan_downsample=4, refine_downsample=1, fine=2)
    model = fit([pixels], [annotations], geometry=mine, steps=60, **QUICK)
    assert model.geometry == mine
    with analyze(pixels, model) as part, analyze(pixels, model, budget=1.0) as whole:
        assert len(part.regions) >= 0.8 * len(whole.regions) > 0
        assert part.refined.shape == (32, 32)
    large = Geometry(cell=32, scan_downsample=8, refine_downsample=1, fine=4)
    model = fit([pixels], [annotations], geometry=large, minimise="seconds", steps=10, **QUICK)
    assert model.geometry == large
    for wrong, message in (
        (Geometry(cell=16, scan_downsample=4, refine_downsample=1), r"expected cell = 8 \* refine_downsample \* fine"),
        (Geometry(cell=64, scan_downsample=2, refine_downsample=1, fine=8), "a cell must be 1, 2, 4 or 8 pixels"),
        ("fine", 'geometry must be a Geometry or "search"'),
    ):
        with pytest.raises(ValueError, match=message):
            fit([pixels], [annotations], geometry=wrong, progress=False)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_glance_comes_first_where_that_is_cheaper(small_steps: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Twenty bright discs in a large empty scene: the scan is nearly all that there is to pay.
    pixels = np.random.default_rng(0).integers(60, 120, (2048, 2048)).astype(np.uint8)
    small, annotations = discs(0)[0]
    pixels[:SIDE, :SIDE] = small
    model = fit([pixels], [annotations], steps=60, recall=0.9, **QUICK)
    assert len(model.cascade) >= 1
    told = model.provenance
    assert told["cost"] < min(told["cost_without_glances"].values())
    plain = replace(model, cascade=())
    with analyze(pixels, model, audit=0) as zoomed, analyze(pixels, plain, audit=0) as looked:
        assert zoomed.cost.scan_macs < looked.cost.scan_macs
        assert len(zoomed.regions) >= 0.75 * len(looked.regions) > 0


@pytest.mark.slow
def test_specialists_are_fitted_and_used(small_steps: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # With so little to learn from hardly anything surely helps: what is tested is that all of it runs.
    monkeypatch.setattr("coarse2fine.fitting.specialists.evidence.believed", lambda gains, *_: np.ones(len(gains)))
    monkeypatch.setattr("coarse2fine.fitting.specialists.validate._LOW", (0.03,))
    monkeypatch.setattr("coarse2fine.fitting.specialists.unsure_cells._BAND", Gate(0.001, 0.98))
    monkeypatch.setattr("coarse2fine.fitting.specialists.validate.Verdict.pays", lambda *_: True)
    monkeypatch.setattr("coarse2fine.fitting.one_band.most_groups", lambda _: 99)
    monkeypatch.setattr("coarse2fine.fitting.specialists.grow_tree._FEWEST", 4)
    scenes = [discs(seed)[0] for seed in (0, 1)]
    images, annotations = [pixels for pixels, _ in scenes], [known for _, known in scenes]
    options: dict[str, Any] = {"specialists": "auto", "steps": 30, "precision": "fp32", "progress": False}
    model = fit(images, annotations, cache=tmp_path / "cache", **options)
    told = model.provenance["specialists"]
    assert told["asked"] == "auto"
    assert told["chosen"] in ("heads and activity", "tree and activity")
    assert list(told["held_back"]) == ["heads", "tree", "activity"]
    assert len(told["first_stage"]) == 3
    assert model.scan_groups is not None
    assert model.scan_groups.spec.first == 1
    assert len(model.refiner.specialists) == 2
    assert model.tree is not None
    assert model.tree.tiles
    pixels = discs(2)[0][0]
    plain = with_specialists(model)
    mine, bare = (analyze(pixels, each, budget=1.0, precision="fp32") for each in (model, plain))
    assert mine.cost.refine_macs > bare.cost.refine_macs
    saved = load_model(model.save(tmp_path / "special.c2f"))
    assert analyze(pixels, saved, budget=1.0, precision="fp32").regions == mine.regions
    # Nothing that is there is done again.
    monkeypatch.setattr("coarse2fine.fitting.specialists.unsure_cells._Source.learning", None)
    monkeypatch.setattr("coarse2fine.fitting.specialists.train_columns._train_own", None)
    again = fit(images, annotations, cache=tmp_path / "cache", **options)
    assert again.provenance["specialists"] == told
    assert analyze(pixels, again, budget=1.0, precision="fp32").regions == mine.regions


def test_specialists_that_do_not_surely_help_are_left_out(small_steps: None) -> None:
    pixels, annotations = discs(0)[0]
    model = fit([pixels], [annotations], specialists="auto", steps=10, precision="fp32", progress=False)
    assert model.refiner.specialists == ()
    assert model.provenance["specialists"]["chosen"] is None
    assert "nothing is significant with 0 groups" in model.provenance["specialists"]["why"]  # and nothing was trained
    with pytest.raises(ValueError, match="specialists must be None or one of heads, tree"):
        fit([pixels], [annotations], specialists="all", progress=False)  # type: ignore[arg-type]


def test_specialists_that_have_nothing_to_learn_from_are_left_out(
    small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coarse2fine.fitting.specialists.unsure_cells._Source.learning", lambda _: iter(()))
    monkeypatch.setattr("coarse2fine.fitting.specialists.activity.Groups.fit", Mock(side_effect=ValueError))
    pixels, annotations = discs(0)[0]
    for mode in ("tree", "activity"):
        options: dict[str, Any] = {"specialists": mode, "steps": 10, "precision": "fp32", "progress": False}
        with pytest.warns(UserWarning, match=f"no specialists '{mode}' .*nothing for them to learn from"):
            model = fit([pixels], [annotations], **options)
        assert model.refiner.specialists == ()
        assert model.provenance["specialists"]["held_back"] == {}


def test_a_cluster_is_not_asked_where_it_may_not_see_the_folder(
    small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coarse2fine.fitting.specialists.unsure_cells._BAND", Gate(0.001, 0.98))
    pixels, annotations = discs(0)[0]
    cluster = Mock(side_effect=AssertionError("asked"))
    with dask.config.set(scheduler=cluster), pytest.warns(UserWarning, match="no specialists 'heads' helped"):
        fit([pixels], [annotations], specialists="heads", steps=10, precision="fp32", progress=False)
    assert not cluster.called


def test_areas_come_back_as_outlines(small_steps: None) -> None:
    pixels, annotations = discs(3, lake=True)[0]
    model = fit([pixels], [annotations], steps=40, **QUICK)
    assert {label.name: label.kind for label in model.labels} == {"disc": "object", "lake": "area"}
    regions = analyze(pixels, model, budget=1.0, threshold=0.5, precision="fp32").regions
    lakes = [r for r in regions if r.label == "lake"]
    assert lakes
    assert all(r.outline is not None and len(r.outline) >= 4 for r in lakes)
    largest = max(lakes, key=lambda r: (r.full_box[2] - r.full_box[0]) * (r.full_box[3] - r.full_box[1]))
    np.testing.assert_allclose(largest.full_box, (20, 30, 350, 380), atol=60)
    # The many cells of the lake do not outvote the discs in the default plan.
    found = [r for r in analyze(pixels, model, threshold=0.5, precision="fp32").regions if r.label == "disc"]
    assert len(found) >= 0.9 * sum(r.label == "disc" for r in regions) > 9


def test_an_image_of_areas_alone_can_be_fitted(small_steps: None) -> None:
    pixels, annotations = discs(3, lake=True)[0]
    lake = collection(annotations["features"][0])
    model = fit([np.repeat(pixels[..., None], 3, axis=2)], [lake], steps=10, **QUICK)
    assert model.channels == 3
    assert model.geometry.refine_downsample > 1


def test_a_scene_of_points_can_be_fitted(small_steps: None) -> None:
    (pixels, _), centres = discs(4)
    points = collection(*(feature("disc", [[x, y]]) for y, x in centres.tolist()))
    model = fit([pixels], [points], steps=10, object_size=19, **QUICK)
    assert model.provenance["median_size"] == 19


def test_what_fit_guesses_leaves_out_and_cannot_hold_back_is_told(small_steps: None) -> None:
    pixels, annotations = discs(0)[0]
    large = feature("disc", [[100, 100], [300, 100], [300, 300], [100, 300]])
    options: dict[str, Any] = {"steps": 10, "specialists": None, "precision": "fp32", "progress": False}
    with pytest.warns(UserWarning, match=r"held-out parts of the scenes: thresholds are set on training data"):
        model = fit([pixels], [annotations], **options)
    assert model.provenance["calibrated_on_training"]
    with pytest.warns(UserWarning, match=r"1 of 41 disc \(1 too large\)"):
        model = fit([np.tile(pixels, (1, 2))], [collection(*annotations["features"], large)], **options)
    assert model.provenance["left_out"] == {"disc": [1, 0]}
    crowd = [[24.0 * i, 24.0 * j] for i in range(1, 12) for j in range(1, 12)]
    for spots, told, size in (
        (crowd, "took 24 px .*nearest neighbour closer.*give object_size", 24),
        ([[20.0, 20.0], [120.0, 30.0], [60.0, 110.0]], "took 32 px .*a usual size: points that far apart", 32),
    ):
        with pytest.warns(UserWarning, match=told):
            model = fit([pixels], [collection(*(feature("disc", [spot]) for spot in spots))], **options)
        assert model.provenance["point_size"] == pytest.approx(size)
    few_small = collection(*(feature("speck", [[9, i], [16, i], [16, i + 7], [9, i + 7]]) for i in range(0, 100, 10)))
    few_small["features"] += [
        feature("barn", [[20, 20], [20 + s, 20], [20 + s, 20 + s], [20, 20 + s]]) for s in range(200, 290)
    ]
    with pytest.raises(AnnotationError, match=r"10 of 10 speck \(10 too small\)"):
        fit([pixels], [few_small], **options)


def test_a_scene_where_nothing_is_learned_still_gives_a_model(small_steps: None) -> None:
    rng = np.random.default_rng(0)
    blank = rng.integers(0, 255, (200, 200)).astype(np.uint8)
    model = fit(
        [blank],
        [collection(feature("ghost", [[50, 50], [60, 50], [60, 60], [50, 60]]))],
        steps=10,
        **QUICK,
    )
    analysis = analyze(blank, model, precision="fp32")
    assert np.isfinite(analysis.interest).all()


def write(folder: Path, name: str, shape: tuple[int, int], label: str) -> Path:
    cv2.imwrite(str(folder / f"{name}.png"), np.zeros(shape, np.uint8))
    (folder / f"{name}.geojson").write_text(json.dumps(collection(feature(label, [[10, 10]]))))
    return folder / f"{name}.png"


def test_images_and_annotations_are_paired(tmp_path: Path) -> None:
    second, first = write(tmp_path, "b", (50, 60), "b"), write(tmp_path, "a", (70, 80), "a")
    texts = [p.with_suffix(".geojson") for p in (second, first)]
    dicts = [json.loads(p.read_text()) for p in texts]
    ways: list[tuple[Any, Any]] = [
        (tmp_path, tmp_path),
        (str(tmp_path / "*.png"), str(tmp_path / "*.geojson")),
        ([second, first], texts),
        ([first, second], texts),
        ([str(second), str(first)], dicts),
        ([cv2.imread(str(p)) for p in (second, first)], dicts),
        ([open_image(second), first], dicts),
        ([open_image(second), first], texts),
    ]
    together = tmp_path / "coco.json"
    boxes = [{"image_id": i, "category_id": i, "bbox": [5, 5, 10, 10]} for i in range(2)]
    named = [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate("ab")]
    kinds = [{"id": i, "name": name} for i, name in enumerate("ab")]
    together.write_text(json.dumps({"images": named, "annotations": boxes, "categories": kinds}))
    ways += [(str(tmp_path / "*.png"), str(together)), ([second, first], [together])]
    for images, known in ways:
        pairs = load_pairs(images, known)
        assert {(image.height, a.labels) for image, a in pairs} == {(50, ("b",)), (70, ("a",))}


def test_annotations_that_are_left_out_are_warned_of(tmp_path: Path) -> None:
    path = write(tmp_path, "a", (50, 60), "a")
    payload = collection(feature("a", [[10, 10]]), {**feature("a", [[1, 1]]), "geometry": None})
    with pytest.warns(UserWarning, match="left out 1 of 2, feature 2: has no geometry"):
        ((_, found),) = load_pairs(path, payload)
    assert len(found.objects) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recall": 0.0}, "recall must lie between 0 and 1"),
        ({"recall": 1.0}, "recall must lie between 0 and 1"),
        ({"recall": float("nan")}, "recall must lie between 0 and 1"),
        ({"steps": 9}, "steps must be a whole number, at least 10"),
        ({"steps": 50.5}, "steps must be a whole number"),
        ({"seed": -1}, "seed must be a whole number, 0 or more; got -1"),
        ({"object_size": -5.0}, "object_size must be a positive number"),
        ({"object_size": float("nan")}, "object_size must be a positive number"),
        ({"precision": "fp8"}, "precision must be"),
        ({"base": "resnet18"}, "expected a base such as 'timm:mobilenetv2_100'"),
        ({"base": "timm:resnt18", "base_weights": "none"}, "it knows .*resnet18"),
        ({"base_weights": "none"}, "base_weights are weights of a base"),
    ],
)
def test_parameters_out_of_range(options: dict[str, Any], message: str) -> None:
    pixels, annotations = discs(0)[0]
    with pytest.raises(ValueError, match=message):
        fit([pixels], [annotations], progress=False, **options)


def test_what_cannot_be_learned_from_is_refused(small_steps: None, tmp_path: Path) -> None:
    pixels, annotations = discs(0)[0]
    region = collection(feature("Region*", [[0, 0], [90, 0], [90, 90]]))
    with pytest.raises(AnnotationError, match="no object of any class"):
        fit([pixels], [region], progress=False)
    nowhere = feature("Region*", [[1, 1], [2, 1], [2, 2]])
    with pytest.raises(AnnotationError, match="outside the Region"):
        fit([pixels], [collection(*annotations["features"], nowhere)], progress=False)
    everywhere = feature("Ignore*", [[0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE]])
    with pytest.raises(AnnotationError, match="in Ignore"):
        fit(pixels, collection(*annotations["features"], everywhere), progress=False)
    with pytest.raises(AnnotationError, match=r"1 of 1 disc \(1 too large\).* to 4,640 px"):
        fit(pixels, collection(feature("disc", [[9, 9]])), object_size=1e6, progress=False)
    huge = Geometry(cell=128, scan_downsample=16, refine_downsample=1, fine=16)
    small = collection(feature("disc", [[20, 20], [40, 20], [40, 40], [20, 40]]))
    with pytest.raises(AnnotationError, match="no cell of 128 px lies wholly"):
        fit(pixels[:100, :100], small, geometry=huge, steps=10, progress=False)
    with pytest.raises(AnnotationError, match="one annotation for each image, got 1 for 2"):
        fit([pixels, pixels], [annotations], progress=False)
    with pytest.raises(AnnotationError, match="outside the image"):
        fit([pixels[:100, :100]], [annotations], progress=False)
    with pytest.raises((AnnotationError, FileNotFoundError), match="nothing"):
        fit(tmp_path / "nothing.png", tmp_path / "nothing.geojson", progress=False)
    path = write(tmp_path, "a", (70, 80), "a")
    path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a\.png"):
        fit(path, path.with_suffix(".geojson"), progress=False)


def test_an_explorer_is_fitted_and_explores() -> None:
    images = [open_image(discs(seed)[0][0]) for seed in (0, 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coarse2fine.fitting.explorer._BATCH", 4)
        model = fit_explorer(images, steps=10, precision="fp32", progress=False)
    assert model.refiner.learns
    assert model.base is net(model)
    assert np.isfinite(model.provenance["loss"])
    assert analyze(discs(2)[0][0], model, precision="fp32").complete


def test_threads_do_not_change_what_training_sees() -> None:
    def weights() -> torch.Tensor:
        torch.manual_seed(0)
        net = torch.nn.Conv2d(1, 1, 3)

        def make(rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
            x = torch.from_numpy(rng.normal(0, 1, (2, 1, 6, 6)).astype(np.float32))
            return x, 2 * x[..., 1:-1, 1:-1]

        error = train(
            net, make, torch.nn.functional.mse_loss, Runtime.choose("cpu", "fp32"), steps=150, seed=0, rate=0.1
        )
        assert error.loss < 0.1
        assert not net.training
        return net.weight.detach()

    first = weights()
    torch.testing.assert_close(weights(), first, rtol=0, atol=0)
    assert float(first[0, 0, 1, 1]) == pytest.approx(2, abs=0.2)
