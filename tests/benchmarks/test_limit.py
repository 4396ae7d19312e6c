"""The benchmark of the limit: that it repeats what the analysis did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.limit.run import LimitScale, benchmark_limit, recorded

from coarse2fine import analyze, load_model
from coarse2fine.bench.gigapixel import HugeScenes
from coarse2fine.models.quantized import can_quantize
from coarse2fine.steps import scan_net
from coarse2fine.tiling.opening import open_image


def test_work_is_recorded(tmp_path: Path) -> None:
    scene = HugeScenes(tmp_path, objects=20_000).make(0.001, 1)
    model = load_model("digits")
    with open_image(scene.image) as image:
        before = image.stats.snapshot()
        with recorded() as work:
            done = analyze(image, model, budget=1.0)
        assert len(work.chunks) == image.stats.since(before).chunks == done.cost.chunks
    spent = sum(
        shape[0] * net.spec.macs(*((n - 2 * net.spec.margin) // net.spec.stride for n in shape[2:]))
        for net, shape, _ in work.forwards
    )
    assert spent == done.cost.macs - done.cost.audit_macs
    assert {dtype for *_, dtype in work.forwards} <= {torch.float32, torch.bfloat16}


@pytest.mark.skipif(not can_quantize(), reason="torch computes no 8-bit convolutions here")
def test_integers_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = HugeScenes(tmp_path, objects=20_000).make(0.001, 1)
    monkeypatch.setattr(scan_net, "_LARGE", 1)
    with recorded() as work, analyze(scene.image, "digits", audit=0.0, device="cpu") as done:
        pass
    spent = sum(
        shape[0] * net.spec.macs(*((n - 2 * net.spec.margin) // net.spec.stride for n in shape[1:3]))
        for net, shape in work.integers
    )
    assert spent == done.cost.scan_macs


def test_ratios(tmp_path: Path) -> None:
    figures = benchmark_limit(tmp_path, scale=LimitScale(0.001, 0.0005, 1)).figures()
    for row in ("default, 0.001 Gpx", "exhaustive, 0.0005 Gpx"):
        bare = figures[f"{row}/forwards"] + figures[f"{row}/decoding"]
        assert abs(figures[f"{row}/ratio"] - figures[f"{row}/analysis"] / bare) < 1e-6
