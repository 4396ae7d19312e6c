"""Model files that strangers made: refused with the file's name, before they take memory, time or code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from coarse2fine import ModelError, load_model
from coarse2fine.bundle import ModelSpec
from coarse2fine.model import Model
from coarse2fine.models.timm_text import parse_network

Arrays = dict[str, Any]


@pytest.fixture
def saved(detector: Model, tmp_path: Path) -> Path:
    return detector.save(tmp_path / "tiny.c2f")


def described(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(json.loads(header["__metadata__"]["coarse2fine"]))


def rewrite(path: Path, change: dict[str, Any] | None = None, arrays: Arrays | None = None) -> None:
    text = json.dumps({**described(path), **(change or {})})
    save_file({**load_file(path), **(arrays or {})}, path, metadata={"coarse2fine": text})


def with_header(text: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text


@contextmanager
def little_memory() -> Iterator[None]:
    """No more than 500 MB beside what the process has already."""
    import resource  # noqa: PLC0415 (not on Windows)

    before = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (before + 500 * 2**20, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited by the kernel")
@pytest.mark.parametrize(
    "change",
    [
        {"base": "4/2:4000 3:4000 3:4000 1:1"},  # 1.2 GB, and the file holds none of it
        {"refiner": "4/2:16 3:4096 3:4096 1:4"},
        {"base": " ".join(["1:4096"] * 60)},
        {"base": "1:1 " * 500_000},
    ],
)
def test_a_text_that_asks_for_gigabytes_is_refused_before_they_are_taken(saved: Path, change: dict[str, Any]) -> None:
    rewrite(saved, change)
    with little_memory(), pytest.raises(ModelError, match=r"tiny\.c2f does not describe a whole model"):
        load_model(saved)


@pytest.mark.parametrize(
    "base",
    [
        *("4/2:1000000000 1:1", "4/2:-4 1:1", "4/0:4 1:1", "0/2:4 1:1", "4/2:4", "4/2 1:1", "4/2:4 1:1:1", "a:b 1:1"),
        *("4/4096:4 1:1", "9999999999999999999999/2:4 1:1", "4/2:1e3 1:1", "", "1" * 5000 + ":1 1:1"),
        *("timm:resnet18 stride=0 stages=4 offset=0 margin=0 neck=64",),
        *("timm:resnet18 stride=4 stages=4 offset=0 margin=-4 neck=64",),
        *("timm:resnet18 stride=4 stages=4 offset=0 margin=4000000 neck=64",),
        *("timm:resnet18 stride=4 stages=4 offset=0 margin=40 neck=1000000000",),
        *("timm:resnet18 stages=4", "timm:", "timm:resnet18 stride", "timm:hf-hub:x/y stride=4 stages=4"),
    ],
)
def test_absurd_nets_are_refused(saved: Path, base: str) -> None:
    rewrite(saved, {"base": base})
    with pytest.raises(ModelError, match=r"tiny\.c2f does not describe a whole model"):
        load_model(saved)


GEOMETRY = {"cell": 8, "scan_downsample": 2, "refine_downsample": 1, "fine": 2}


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"geometry": {**GEOMETRY, name: value}}
            for name in GEOMETRY
            for value in (0, -8, 2.5, "8", 2**70, [8], None)
        ),
        *({name: []} for name in ("name", "task", "base", "refiner", "channels", "threshold", "tau", "window")),
        *({name: "x"} for name in ("geometry", "mean", "std", "labels", "channels", "window", "provenance")),
        *({"std": [0.25, 0.25, std]} for std in (0, -1, 1e-30, "a", None, [1], 10**400)),
        *({"mean": mean} for mean in ([0.5], [0.5] * 4, ["a"] * 3, [[0.5]] * 3)),
        *({"labels": labels} for labels in ([["x"]], [{"name": ["x"]}], [{"name": "x", "kind": "y"}], ["x"])),
        *({"threshold": value} for value in (-1, 2, True)),
        *({"tau": -1.0}, {"window": 0}, {"window": True}, {"task": "nothing"}, {"task": "explore"}, {"channels": 2}),
        *({"channels": 10**9}, {"glances": [1]}, {"glances": 5}, {"glances": [{"net": "4:1 1:1"}]}, {"tree": {}}),
        *({"groups": []}, {"firing": {"rule": "x", "prior": 0.1}}, {"firing": {"rule": "logit", "prior": 0}}),
    ],
    ids=str,
)
def test_absurd_descriptions_are_refused(saved: Path, change: dict[str, Any]) -> None:
    rewrite(saved, change)
    with pytest.raises(ModelError, match=r"tiny\.c2f does not describe a whole model"):
        load_model(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["threshold", "tau", "std", "mean", "firing"])
def test_numbers_that_are_not_finite_are_refused(saved: Path, key: str, value: float) -> None:
    old = described(saved)[key]
    rewrite(
        saved, {key: [0.5, value, 0.5] if isinstance(old, list) else {"prior": value} if key == "firing" else value}
    )
    with pytest.raises(ModelError, match=rf"tiny\.c2f: {key}.* is NaN or infinite"):
        load_model(saved)


def test_tensors_that_are_not_finite_are_refused_by_name(saved: Path) -> None:
    for name, array in load_file(saved).items():
        if array.dtype.kind != "f":
            continue
        bad = array.copy()
        bad.flat[-1] = np.nan if "weight" in name else np.inf
        content = saved.read_bytes()
        rewrite(saved, arrays={name: bad})
        with pytest.raises(ModelError, match=rf"tiny\.c2f: the tensor {name} holds NaN or infinite values"):
            load_model(saved)
        saved.write_bytes(content)


@pytest.mark.parametrize(
    "arrays",
    [
        {"firing.features": np.array([0, 1, 200])},
        {"firing.features": np.array([-1])},
        {"firing.raw_knots": np.array([1, 1], np.float32), "firing.probability_knots": np.zeros(2, np.float32)},
        {"firing.raw_knots": np.array([3, 2, 1], np.float32), "firing.probability_knots": np.zeros(3, np.float32)},
        {"firing.probability_knots": np.zeros(1, np.float32)},
        {"firing.0.precision": np.zeros((0,), np.float32)},
        {"firing.0.edges": np.zeros((2, 2), np.float32)},
        {"base.convs.0.weight": np.zeros((1,), np.float32)},
        {"base.more": np.zeros((1,), np.float32)},
    ],
    ids=",".join,
)
def test_tables_that_do_not_fit_are_refused(saved: Path, arrays: Arrays) -> None:
    rewrite(saved, arrays=arrays)
    with pytest.raises(ModelError, match=r"tiny\.c2f does not describe a whole model"):
        load_model(saved)


def test_a_network_of_timm_with_a_negative_variance_is_refused(timm_detector: Model, tmp_path: Path) -> None:
    path = timm_detector.save(tmp_path / "tiny.c2f")
    variance = load_file(path)["base.norm.running_var"]
    rewrite(path, arrays={"base.norm.running_var": -variance})
    with pytest.raises(ModelError, match=r"the variance norm\.running_var is negative"):
        load_model(path)


class Evil:
    """What runs code when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.proof,)


def test_a_model_file_cannot_have_timm_open_files(timm_detector: Model, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    torch.save(Evil(proof), tmp_path / "evil.pth")
    path = timm_detector.save(tmp_path / "tiny.c2f")
    network, rest = described(path)["base"].split(" ", 1)
    for argument in (
        *(f"checkpoint_path={tmp_path / 'evil.pth'}", f"cache_dir={tmp_path}", "pretrained=True", "pretrained_cfg=x"),
        *("pretrained_cfg_overlay={'file':'x'}", "features_only=True", "out_indices=(0,)", "num_classes=1000000000"),
        *(f"pad_type={tmp_path}", "channel_multiplier=1e9", f"drop_rate={'(' * 60}1{')' * 60}", "a={'b':1}"),
        *(f"depths=({'1,' * 30})", "depths=(999999,)", "img_size=1000000", "a=1e999", "a=b'x'", "a=None"),
    ):
        rewrite(path, {"base": f"{network}?{argument} {rest}"})
        with pytest.raises(ModelError, match=r"tiny\.c2f does not describe a whole model \("):
            load_model(path)
    assert not proof.exists()


def test_plain_arguments_of_a_network_are_read() -> None:
    text = "timm:net.tag_in1k?pad_type=same&act_layer=relu&depths=(2,2)&output_stride=16&drop_rate=0.1&mean=0.5,0.4,0.3"
    name, arguments = parse_network(text)
    assert (name, arguments["depths"], arguments["mean"]) == ("net.tag_in1k", "(2,2)", "0.5,0.4,0.3")


@pytest.mark.parametrize(
    "content",
    [
        with_header(b"{}", 2**63),
        with_header(b"{}", 10**9),
        with_header(b"{}", 0),
        with_header(b"[" * 100_000),
        with_header(b'{"a":' * 100_000),
        with_header(b"\xff\xfe"),
        with_header(b"[]"),
        with_header(b'{"__metadata__": []}'),
        with_header(b'{"__metadata__": {"coarse2fine": {"format": 1}}}'),
        with_header(b'{"__metadata__": {"coarse2fine": 5}}'),
        with_header(json.dumps({"__metadata__": {"coarse2fine": "[" * 100_000}}).encode()),
        with_header(b'{"__metadata__": {"coarse2fine": "{\\"format\\": 1}"}, "x": {"dtype": "F32", "shape": [10]}}'),
        with_header(
            b'{"__metadata__": {"coarse2fine": "{\\"format\\": 1}"}, '
            b'"x": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 4000000000]}}'
        ),
    ],
)
def test_damaged_headers_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tiny.c2f"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"tiny\.c2f (is no model file|has a damaged description)"):
        load_model(path)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes have no names of this kind there")
def test_pipes_devices_and_huge_files_are_refused_at_once(tmp_path: Path, saved: Path) -> None:
    os.mkfifo(tmp_path / "pipe.c2f")
    (tmp_path / "device.c2f").symlink_to("/dev/zero")
    for name in ("pipe.c2f", "device.c2f"):
        for load in (load_model, ModelSpec.of):
            with pytest.raises(ModelError, match=rf"{name} is a pipe or device, expected a \.c2f file"):
                load(tmp_path / name)
    with saved.open("r+b") as file:
        file.truncate(50 * 2**30)
    with pytest.raises(ModelError, match=r"tiny\.c2f has 53,687,091,200 bytes, expected a model of at most"):
        load_model(saved)


@pytest.mark.parametrize("depth", [30, 450, 900])
def test_a_deep_description_is_refused_or_read(saved: Path, depth: int) -> None:
    deep: Any = []
    for _ in range(depth):
        deep = [deep]
    rewrite(saved, {"provenance": {"odd": deep}})
    try:
        load_model(saved)
    except ModelError as error:
        assert str(saved) in str(error)  # noqa: PT017 (either is right)
