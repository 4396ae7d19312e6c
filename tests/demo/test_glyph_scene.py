"""Scenes of letters."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from coarse2fine.demo.glyph_scene import ALIKE, SCRIPTS, GlyphScene, _alphabet, profile
from coarse2fine.demo.ink_scene import CANVAS
from coarse2fine.tiling.geometry import Box


def test_letters_are_of_their_script_and_differ() -> None:
    labels, fields = _alphabet(90)
    assert fields.shape == (len(labels), CANVAS, CANVAS)
    assert len(set(labels)) == len(labels) > 200
    assert {label.split()[0] for label in labels} == set(SCRIPTS)
    hebrew = [label.split()[1] for label in labels if label.startswith("Hebrew ")]
    assert all(unicodedata.name(letter).startswith("HEBREW") for letter in hebrew)
    rows = np.stack([profile(field) for field in fields])
    alike = rows @ rows.T - 2 * np.eye(len(rows))
    assert alike.max() < ALIKE + 0.03  # the canvas is blurred relatively less


def test_a_scene_holds_its_letters() -> None:
    scene = GlyphScene(600, 700, letters=20, clutter=10, seed=4)
    pixels = scene.block(Box(0, 0, 600, 700))
    assert (len(scene.objects), len(scene.clutter)) == (20, 10)
    again = GlyphScene(600, 700, letters=20, clutter=10, seed=4)
    np.testing.assert_array_equal(pixels, again.block(Box(0, 0, 600, 700)))
    ground = GlyphScene(600, 700, letters=0, clutter=0, seed=4).block(Box(0, 0, 600, 700))
    inked = np.abs(pixels.astype(int) - ground)[..., 0] > 20
    for placed in (*scene.objects, *scene.clutter):
        assert inked[placed.full_box.slices].any()
        inked[placed.full_box.slices] = False
    assert not inked.any()


def test_a_scene_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="found room for only"):
        GlyphScene(100, 100, letters=50, clutter=0, seed=1)
