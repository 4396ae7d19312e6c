"""Damaged files of every kind: refused in our words or read, within limits of time and memory, and without a word."""

from __future__ import annotations

import sys

import pytest

from tests.fuzz.campaign import BAD, run, table

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits are those of POSIX")


def test_damaged_inputs_are_refused_or_read() -> None:
    results = list(run(300, seed=1))
    bad = [f"{r.number} {r.seed.name}: {r.outcome}: {r.detail}" for r in results if r.outcome in BAD]
    assert not bad, "\n".join([*bad, table(results)])
    assert {"read", "refused"} <= {r.outcome for r in results}
