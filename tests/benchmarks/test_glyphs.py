"""The benchmark of forks: that it compares what it says, not what wins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import command
from benchmarks.glyphs import run
from benchmarks.glyphs.distortion import SIDE, Sampler
from benchmarks.glyphs.experiment import GlyphScale, Result
from benchmarks.glyphs.fonts import Glyphs, load_glyphs
from benchmarks.glyphs.report import section_of
from benchmarks.glyphs.routing import ByChance, rerouted
from benchmarks.glyphs.variants import BASE, BORDERS, FORK, ON, ORACLE, TRUNK, VARIANTS
from matplotlib import font_manager

from coarse2fine.demo.glyph_scene import PLANE
from coarse2fine.fitting.classes.grow_forks import Growing, Recipe, Step, targets_of
from coarse2fine.fitting.classes.learner import Learner, stream, train_net
from coarse2fine.models.conv_stack import ConvStack, StackSpec
from coarse2fine.models.fork import ForkTree, Layers

SCALE = GlyphScale(6, 2048, 3072, 512, 300, 1, (BASE, ON, "random", "64", "8 x 8"))


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the font that matplotlib brings (Latin, Greek, Cyrillic and others), and a file that is no font."""
    folder = tmp_path_factory.mktemp("schriften ä")
    path = Path(font_manager.findfont("DejaVu Sans"))
    (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.ttf").write_bytes(b"no font")
    return folder


@pytest.fixture(scope="module")
def glyphs(fonts: Path) -> Glyphs:
    return load_glyphs(fonts, most=6)


def test_glyphs_are_whole_and_differ(glyphs: Glyphs) -> None:
    assert {"Latin", "Greek", "Cyrillic"} <= set(glyphs.names)
    assert glyphs.images.shape == (len(glyphs), PLANE, PLANE)
    assert len(set(glyphs.letters)) == len(glyphs.letters) == len(glyphs)
    assert np.bincount(glyphs.scripts).max() <= 6
    assert glyphs.images[:, [0, -1]].max() == glyphs.images[:, :, [0, -1]].max() == 0
    flat = glyphs.images.reshape(len(glyphs), -1)
    alike = np.array(np.corrcoef(flat))
    assert alike[~np.eye(len(flat), dtype=bool)].max() < 0.97
    # Latin, Greek and Cyrillic A look alike: only the first is a class.
    assert "A" in glyphs.letters
    assert not {"\u0391", "\u0410"} & set(glyphs.letters)


def test_without_fonts_it_says_what_was_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match="expected fonts of at least two of Latin"):
        load_glyphs(tmp_path, most=6)
    assert command.main(["glyphs", "--quick", "--data", str(tmp_path / "none"), "--out", str(tmp_path)]) == 1
    assert "there is no folder" in capsys.readouterr().err


def test_samples_are_fresh_and_repeatable(glyphs: Glyphs) -> None:
    one, two = Sampler(glyphs, 3), Sampler(glyphs, 3)
    first, second = one.draw(64), one.draw(64)
    assert first.images.shape == (64, 1, SIDE, SIDE)
    torch.testing.assert_close(first, two.draw(64), rtol=0, atol=0)
    assert not torch.equal(first.images, second.images)
    assert torch.isfinite(first.images).all()
    weights = torch.zeros(len(glyphs))
    weights[5] = 1
    assert set(one.draw(32, weights).classes.tolist()) == {5}


def test_a_sample_is_its_glyph(glyphs: Glyphs) -> None:
    """The mean of many samples of a class is most like the glyph of that class."""
    sampler, small = Sampler(glyphs, 0), glyphs.images.reshape(len(glyphs), SIDE, 2, SIDE, 2).mean(axis=(2, 4))
    for wanted in range(0, len(glyphs), 7):
        weights = torch.zeros(len(glyphs))
        weights[wanted] = 1
        mean = sampler.draw(400, weights).images.mean(dim=(0, 1)).numpy()
        alike = [np.corrcoef(mean.ravel(), image.ravel())[0, 1] for image in small]
        assert int(np.argsort(alike)[::-1].tolist().index(wanted)) < 3


def test_training_learns(glyphs: Glyphs) -> None:
    torch.manual_seed(0)
    net, sampler = ConvStack(StackSpec.parse(1, "6/2:8 4/2:8 3:16 2:16 1:4"), batch_norm=True), Sampler(glyphs, 0)
    few = (torch.arange(len(glyphs)) < 4).float()
    layers = Layers.of(net)
    learner = Learner(layers, 1e-2, batch=64)
    for step in range(40):
        learner.see(*sampler.draw(64, few), step / 40)
    x, classes = sampler.draw(500, few)
    with torch.inference_mode():
        wrong = layers.eval()(x).flatten(1).argmax(dim=1) != classes
    assert wrong.float().mean() < 0.4  # by chance 0.75


def test_every_sample_is_learned_once_in_batches() -> None:
    seen: list[torch.Tensor] = []

    class Spy(Layers):
        def forward(self, x: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
            seen.append(x[:, 0, 0, 0].detach())
            return super().forward(x, start, stop)

    spec = StackSpec.parse(1, "1:2 1:3")
    learner = Learner(Spy.of(ConvStack(spec)), 1e-3, batch=8)
    values = torch.arange(50.0)
    for some in torch.split(values, 7):
        learner.see(some[:, None, None, None], torch.zeros(len(some), dtype=torch.int64), 0.5)
    assert {len(batch) for batch in seen} == {8}
    assert torch.cat(seen).tolist() == values[:48].tolist()


def test_targets_of_a_leaf_with_few_classes() -> None:
    known = torch.tensor([2, 5, 7])
    assert targets_of(known, torch.tensor([2, 7, 5, 0, 9, 6])).tolist() == [0, 2, 1, 3, 3, 3]
    assert targets_of(None, torch.tensor([2, 7])).tolist() == [2, 7]


def test_a_growing_tree_starts_as_the_trunk_and_sends_each_sample_to_one_leaf(glyphs: Glyphs) -> None:
    spec = StackSpec.parse(1, f"{TRUNK} 1:{len(glyphs)}")
    trunk = train_net(spec, Sampler(glyphs, 0).draw, 2048, seed=0).folded()
    fit = Sampler(glyphs, 1).draw(500)
    before = Layers.of(trunk)
    for steps in ((Step(FORK, 4),), (Step(FORK, 2, 0.3), Step(FORK, 2, 0.6), Step(3, 2))):
        growing, taken = Growing(ForkTree(trunk), Recipe(steps, rate=0.0), *fit, seed=0), 0
        for x, classes, done in stream(Sampler(glyphs, 2).draw, 5120):
            with torch.no_grad():
                maps = before(x, 0, FORK)
            growing.see(maps, classes, FORK, done)
            taken += len(x)
        assert growing.tree.depths.max() == len(steps)
        answers = growing.tree(fit.images)
        with torch.inference_mode():
            torch.testing.assert_close(answers.logits, trunk(fit.images).flatten(1))
        rows = torch.cat([arrived.rows for arrived in growing.tree.arrivals(fit.images)])
        assert rows.sort().values.tolist() == list(range(len(fit.images)))
        # Whatever is not learned is still trained on as many multiply-adds: three of each layer above a frozen one.
        assert taken * spec.macs(1, 1) < growing.training_macs(taken) < 3.1 * taken * spec.macs(1, 1)
        if len(steps) == 1:
            usual = growing.usual_leaf()
            assert usual.shape == (len(glyphs),)
            given = rerouted(growing.tree, usual[fit.classes])(fit.images).nodes
            assert (given == growing.tree.children(0)[usual[fit.classes].numpy()]).all()


def test_dealing_by_chance_is_even_and_repeatable() -> None:
    deal, x = ByChance(4), torch.randn(4000, 3, 2, 2)
    chosen = deal(x).flatten(1).argmax(dim=1)
    assert torch.equal(chosen, deal(x).flatten(1).argmax(dim=1))
    assert torch.bincount(chosen, minlength=4).min() > 850


def test_figures_are_paired_with_their_control() -> None:
    rng = np.random.default_rng(0)
    wrong = {name: rng.random(2000) < share for name, share in ((BASE, 0.3), (ON, 0.2), ("own heads", 0.1))}
    found = {name: [Result(each, 100.0, 10.0, 0.0)] * 2 for name, each in wrong.items()}
    figures = section_of("some", found).figures
    assert figures["own heads/errors"] == pytest.approx(wrong["own heads"].mean())
    assert figures["own heads/than_on"] == pytest.approx(wrong["own heads"].mean() - wrong[ON].mean())
    assert figures["own heads/than_on_p"] < 0.01
    assert figures["own heads/than_on_low"] < figures["own heads/than_on"] < figures["own heads/than_on_high"] < 0
    assert figures[f"{ON}/than_control"] == pytest.approx(wrong[ON].mean() - wrong[BASE].mean())


@pytest.mark.slow
def test_the_whole_benchmark_in_small(
    fonts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "QUICK", SCALE)
    given = ["glyphs", "--quick", "--data", str(fonts), "--out", str(tmp_path), "--json", str(tmp_path / "f.json")]
    assert command.main(given) == 0
    first = capsys.readouterr()
    assert "two at borders" in first.out
    figures = json.loads((tmp_path / "f.json").read_text())["figures"]
    names = [*SCALE.names, BORDERS, ORACLE]
    assert {key.partition("/")[0] for key in figures} == set(names)
    assert all(0 <= figures[f"{name}/errors"] <= 1 for name in names)
    assert figures[f"{ON}/macs"] == figures[f"{BASE}/macs"] == 1
    assert all(name in VARIANTS or name in (BORDERS, ORACLE) for name in names)
    assert (tmp_path / "glyphs.png").stat().st_size > 10_000
    monkeypatch.setattr(run, "run_seed", None)  # stored results are read
    assert command.main(given) == 0
    assert capsys.readouterr().out == first.out
    with pytest.raises(ValueError, match="at least one seed"):
        run.benchmark_glyphs(tmp_path, data=fonts, scale=replace(SCALE, seeds=0))
