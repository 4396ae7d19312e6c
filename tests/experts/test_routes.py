"""Alternatives to an expert, each on the tiles of its clusters, against a loop over the grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from coarse2fine import ExpertError, Model, analyze, analyze_folder, load_model
from coarse2fine.band_run import BandRun
from coarse2fine.config import Config
from coarse2fine.experts.expert import Expert
from coarse2fine.experts.refiner import ExpertRefiner
from coarse2fine.experts.routes import Routes, check_alike
from coarse2fine.models.feature_tree import FeatureTree
from coarse2fine.results.analysis import Analysis
from coarse2fine.steps.checkpoint import StoredCheckpoint
from coarse2fine.tiling.opening import open_image
from tests.experts.scenes import Find, Finder, Pixels, boxes_of, disc_expert, in_image, model_of, once, owned, scene


def shifted(by: float) -> Callable[[Pixels], list[NDArray[np.float64]]]:
    """Finds discs with lower scores, by which they are told from those of others."""
    return lambda pixels: [boxes_of(tile) - [0, 0, 0, 0, by, 0] for tile in pixels]


def routed(*alternatives: Expert, expert: Expert | None = None) -> Model:
    """A model whose expert answers for dark tiles, the first alternative for brighter ones, and so on."""
    expert = expert or disc_expert()
    count = 1 + len(alternatives)
    centres = np.linspace(0.13, 0.18, count, dtype=np.float32)[:, None]
    parent = np.array([-1, *[0] * count], np.int32)
    none, scales = centres[:0, :0], (np.ones(1, np.float32), *[np.zeros(0, np.float32)] * count)
    tree = FeatureTree(parent, np.arange(count + 1), np.ones(count + 1, bool), (centres, *[none] * count), scales)
    routes = Routes(alternatives, tree, np.array([0, *range(count)]))
    return replace(model_of(expert, tau=0.0), refiner=ExpertRefiner(expert, routes=routes))


def leaf_of(image: Pixels, place: tuple[int, int], count: int, tile: int = 64) -> int:
    """Number of the nearest centre to a tile's mean brightness."""
    rows, columns = (
        np.arange(n * tile, (n + 1) * tile).clip(0, s - 1) for n, s in zip(place, image.shape, strict=False)
    )
    mean = image[np.ix_(rows, columns)].mean() / 255
    return int(np.abs(np.linspace(0.13, 0.18, count) - mean).argmin())


@pytest.fixture(scope="module")
def crowded() -> Pixels:
    return scene(384, 448, 200, seed=2)


def found(analysis: Analysis) -> list[Find]:
    return [(r.score, int(r.label == "bright"), r.full_box) for r in analysis.regions]


def same(got: list[Find], wanted: list[Find]) -> None:
    assert [each[1] for each in got] == [each[1] for each in wanted]
    np.testing.assert_allclose([each[0] for each in got], [each[0] for each in wanted], atol=1e-6)
    np.testing.assert_allclose([each[2] for each in got], [each[2] for each in wanted], atol=2e-2)


@pytest.mark.parametrize("contexts", [(8, 8, 8), (8, 0, 20), (12, 4, 4)])
def test_each_tile_is_answered_by_the_expert_of_its_leaf(crowded: Pixels, contexts: tuple[int, ...]) -> None:
    calls = [Finder(), Finder(shifted(0.05)), Finder(shifted(0.1))]
    first, *others = (
        replace(disc_expert(call, context=context, confidence=0.3), tile_macs=10 ** (7 - n))
        for n, (call, context) in enumerate(zip(calls, contexts, strict=True))
    )
    analysis = analyze(crowded, routed(*others, expert=first))
    assert {shape[1] for shape in calls[1].calls} == {64 + 2 * contexts[1]}
    tiles, counts = {}, [0, 0, 0]
    each = [owned(crowded, expert) for expert in (first, *others)]
    for home in each[0]:
        number = leaf_of(crowded, home, 3)
        tiles[home] = [(score - 0.05 * number, *rest) for score, *rest in each[number][home]]
        counts[number] += 1
    assert min(counts) > 3
    same(found(analysis), in_image(once(tiles), crowded))  # type: ignore[arg-type]
    assert [sum(shape[0] for shape in call.calls) for call in calls] == counts
    assert analysis.cost.refine_macs == sum(n * 10 ** (7 - i) for i, n in enumerate(counts))
    for region in analysis.regions:
        y, x = (int(at) // 64 for at in region.full_centre)
        assert region.route == (1 + leaf_of(crowded, (y, x), 3),)
    assert any(f"answered for {counts[1] + counts[2]} of {sum(counts)} tiles" in note for note in analysis.notes)


@pytest.mark.parametrize("options", [{"budget": 1.0}, {"budget": 0.5}, {"recall": 0.7}, {"audit": 0.2}])
def test_statements_are_of_the_expert_alone(crowded: Pixels, options: dict[str, Any]) -> None:
    other = Finder(shifted(0.1))
    model = routed(disc_expert(other, context=16))
    ours, plain = analyze(crowded, model, **options), analyze(crowded, model_of(disc_expert(), tau=0.0), **options)
    assert found(ours) == found(plain)
    assert not other.calls
    assert (ours.audit is None) == (plain.audit is None)
    assert any("ran alone" in note for note in ours.notes)


def test_nothing_is_said_of_recall_by_default(crowded: Pixels) -> None:
    assert analyze(crowded, routed(disc_expert(Finder(shifted(0.1))))).audit is None


def named(by: float = 0.1) -> Any:
    return Finder(shifted(by))


def plain() -> Any:
    return Finder()


TEXTS = ("tests.experts.test_routes:plain", "tests.experts.test_routes:named")


def by_text(tmp_path: Path) -> Path:
    """A model file whose experts are made by texts."""
    made = [replace(disc_expert(), spec=text, call=None) for text in TEXTS]
    return routed(made[1], expert=made[0]).save(tmp_path / "m.c2f")


def test_a_file_holds_all_experts_and_they_are_named_again(crowded: Pixels, tmp_path: Path) -> None:
    path = by_text(tmp_path)
    model = load_model(path)
    assert [each.spec for _, each in model.experts] == list(TEXTS)
    assert "alternative" in str(model)
    wanted = analyze(crowded, routed(disc_expert(Finder(shifted(0.1)))))
    assert found(analyze(crowded, path, expert=TEXTS)) == found(wanted)
    for given in (TEXTS[0], TEXTS[:1], [*TEXTS, TEXTS[0]]):
        with pytest.raises(ExpertError, match="expected all experts of the model in this order"):
            analyze(crowded, path, expert=given)
    with pytest.raises(ExpertError, match="give it again"):
        analyze(crowded, path)


def test_batches_route_alike(crowded: Pixels, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), crowded)
    wanted = analyze(crowded, routed(disc_expert(Finder(shifted(0.1)))))
    batch = analyze_folder(folder, tmp_path / "out", by_text(tmp_path), expert=TEXTS, workers=0)
    assert batch.ok
    (result,) = (tmp_path / "out").glob("*/analysis.json")
    got = Analysis.load(result.parent)
    assert found(got) == found(wanted)
    assert [r.route for r in got.regions] == [r.route for r in wanted.regions]


def test_a_stored_scan_has_its_leaves(crowded: Pixels, tmp_path: Path) -> None:
    model, places = routed(disc_expert(Finder(shifted(0.1)))), []
    with open_image(crowded) as image:
        for _ in range(2):
            checkpoint = StoredCheckpoint(tmp_path)
            _, leaves = BandRun(image, model, Config(), checkpoint).look(None)
            places.append(leaves)
        assert checkpoint.reused == 1
        assert BandRun(image, model, Config(recall=0.7), StoredCheckpoint(tmp_path)).look(None)[1] is None
    assert (places[0] == places[1]).all()
    assert set(np.unique(places[0])) == {1, 2}


@pytest.mark.parametrize(
    ("name", "options"),
    [("tile", {"tile": 32}), ("labels", {"labels": ["dim", "other"]}), ("confidence", {"confidence": 0.7})],
)
def test_alternatives_must_share_the_grid_and_the_labels(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ExpertError, match=f"same .*: {name} is .* for Finder"):
        check_alike(disc_expert(), [disc_expert(context=3), disc_expert(**options)])


def test_damaged_routes_are_refused() -> None:
    good = routed(disc_expert()).refiner
    assert isinstance(good, ExpertRefiner)
    assert good.routes is not None
    with pytest.raises(ValueError, match="one of 2 experts"):
        replace(good.routes, choice=np.array([0, 1, 2]))
