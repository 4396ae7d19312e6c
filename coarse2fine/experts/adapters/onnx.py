"""Adapter for ONNX files, run by onnxruntime."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from coarse2fine.experts.adapter import Adapter, Kind, Pixels, register_expert
from coarse2fine.experts.adapters.decoding import decode_named, decode_rows, decode_yolo, probabilities
from coarse2fine.experts.adapters.torch_module import Activation, check_activation
from coarse2fine.experts.adapters.weights import file_hash, library
from coarse2fine.experts.errors import ExpertError

Decode = Literal["yolo", "rows", "boxes"]
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_NAMED = ("boxes", "scores", "labels")
# Key of a file's metadata under which options of this adapter are found, as JSON.
_METADATA = "coarse2fine"


@dataclass(frozen=True)
class OnnxOptions:
    """Options of an ONNX expert.

    Parameters
    ----------
    kind : {"boxes", "map", "classes", "vectors"}, optional
        By default "boxes" if they are decoded, "map" for an output of four axes, "classes" for two.
    labels : sequence of str, optional
        Names of the classes.
    decode : {"yolo", "rows", "boxes"}, optional
        Form of boxes: "yolo", one output (n, 4 + k, m) or (n, m, 4 + k) of centres, sizes and scores of k classes,
        which gets suppression within classes; "rows", one output (n, m, 6) of x0, y0, x1, y1, score and class;
        "boxes", outputs named boxes, scores and labels, which are found without this option too.
    activation : {"sigmoid", "softmax", "none"}
        From logits to probabilities. With "softmax" class 0 is the background, which is left out.
    layout : {"nchw", "nhwc"}, optional
        Axes of the input; by default by its axis of length 3.
    scale : float, optional
        Factor of pixels before mean and std; by default 1/255.
    mean, std : sequence of float
        Normalisation after `scale`; nothing of it is done for an input of type uint8.
    channels : {"rgb", "bgr"}
    output : str, optional
        Name of the output; by default the first.
    conf : float
        Least score of boxes.
    iou : float
        IoU above which boxes of one class are one object, for "yolo".
    most : int
        Most objects in a tile, for "yolo".
    providers : sequence of str, optional
        Of onnxruntime; by default CUDA if it is there, else the processor.
    """

    kind: Kind | None = None
    labels: Sequence[str] | None = None
    decode: Decode | None = None
    activation: Activation = "none"
    layout: Literal["nchw", "nhwc"] | None = None
    scale: float = 1 / 255
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    channels: Literal["rgb", "bgr"] = "rgb"
    output: str | None = None
    conf: float = 0.25
    iou: float = 0.7
    most: int = 300
    providers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_activation(self.activation)
        for name, value, known in (
            ("decode", self.decode, (None, *get_args(Decode))),
            ("layout", self.layout, (None, "nchw", "nhwc")),
            ("channels", self.channels, ("rgb", "bgr")),
        ):
            if value not in known:
                raise ExpertError(f"expected {name} to be one of {', '.join(map(str, known))}, got {value!r}")
        if not 0 < self.conf < 1 or not 0 < self.iou <= 1:
            raise ExpertError(f"expected conf and iou between 0 and 1, got {self.conf} and {self.iou}")


def build(
    path: str, *, kind: Kind | None = None, side: int, confidence: float | None = None, **options: Any
) -> Adapter:
    """Adapter of an ONNX file whose input is one batch of images.

    Parameters
    ----------
    path : str
    kind : {"boxes", "map", "classes", "vectors"}, optional
    side : int
        Side of a tile with its context.
    confidence : float, optional
        Taken as ``conf`` if that is not among the options.
    **options
        See `OnnxOptions`. An option that is not given is taken from the file's metadata: a JSON object under the key
        "coarse2fine", or what Ultralytics writes.

    Raises
    ------
    ExpertError
        If onnxruntime is missing, the file cannot be read, or an option is missing or does not fit it.
    """
    runtime = library("onnxruntime", "onnx")
    hashed = file_hash(path)
    session = _session(runtime, path, options.get("providers"))
    given = {"kind": kind, "conf": confidence, **options}
    asked = _options(path, {**_metadata(session, path), **{k: v for k, v in given.items() if v is not None}})
    prepare = _input(session, asked, side)
    names, read, form = _output(session, asked, side)

    def call(pixels: Pixels) -> Any:
        step = prepare.batch or len(pixels)
        parts: list[Any] = []
        for start in range(0, len(pixels), step):
            part = pixels[start : start + step]
            full = np.concatenate([part, np.repeat(part[-1:], step - len(part), axis=0)])
            found = dict(zip(names, session.run(list(names), {prepare.name: prepare(full)}), strict=True))
            parts.extend(read(found)[: len(part)])
        return parts if form == "boxes" else np.stack(parts)

    return Adapter(
        call,
        kind=form,
        labels=tuple(map(str, asked.labels)) if asked.labels else None,
        sha256=hashed,
        batch=prepare.batch,
        confidence=asked.conf if asked.decode in ("yolo", "rows") else None,
    )


@dataclass(frozen=True)
class _Input:
    """The input of a file: tiles, uint8 (n, side, side, 3), become what it takes."""

    options: OnnxOptions
    name: str
    dtype: type
    layout: str
    batch: int | None

    def __call__(self, pixels: Pixels) -> NDArray[Any]:
        o = self.options
        x: NDArray[Any] = pixels[..., ::-1] if o.channels == "bgr" else pixels
        if self.dtype is not np.uint8:
            x = (x.astype(np.float32) * np.float32(o.scale) - np.array(o.mean, np.float32)) / np.array(
                o.std, np.float32
            )
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2) if self.layout == "nchw" else x, self.dtype)


def _session(runtime: Any, path: str, providers: Sequence[str] | None) -> Any:
    there = runtime.get_available_providers()
    chosen = list(providers or [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in there])
    if unknown := set(chosen) - set(there):
        raise ExpertError(f"onnxruntime has no provider {min(unknown)!r} here; it has {', '.join(there)}")
    try:
        return runtime.InferenceSession(path, providers=chosen)
    except Exception as error:
        raise ExpertError(f"{path} cannot be opened by onnxruntime ({error!s:.300})") from error


def _metadata(session: Any, path: str) -> dict[str, Any]:
    """Options in a file's metadata."""
    texts = session.get_modelmeta().custom_metadata_map
    try:
        found = dict(json.loads(texts.get(_METADATA, "{}")))
        names = ast.literal_eval(texts["names"]) if "task" in texts and "names" in texts else {}
    except (ValueError, SyntaxError, TypeError) as error:
        raise ExpertError(f"the metadata of {path} cannot be read ({error})") from error
    if names:
        found.setdefault("labels", [str(name) for _, name in sorted(names.items())])
    if texts.get("task") == "detect":
        last = session.get_outputs()[0].shape[-1]
        found.setdefault("decode", "rows" if last == 6 else "yolo")
    return found


def _options(path: str, given: Mapping[str, Any]) -> OnnxOptions:
    try:
        return OnnxOptions(**given)
    except TypeError as error:
        known = ", ".join(name for name in OnnxOptions.__annotations__ if name not in ("kind", "labels"))
        raise ExpertError(f"onnx:{path}: {error}; its options are {known}") from error


def _input(session: Any, options: OnnxOptions, side: int) -> _Input:
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
        raise ExpertError(
            "expected one input of four axes, of type float, float16 or uint8, got "
            + "; ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        )
    shape = inputs[0].shape
    layout = options.layout or ("nhwc" if shape[3] == 3 and shape[1] != 3 else "nchw")
    axes = (0, 2, 3, 1) if layout == "nchw" else (0, 1, 2, 3)
    batch, height, width, channels = (shape[i] if isinstance(shape[i], int) and shape[i] > 0 else None for i in axes)
    if channels not in (None, 3):
        raise ExpertError(f"the input {inputs[0].name} {shape} does not take three channels as {layout}: give layout=")
    if (height or side, width or side) != (side, side):
        raise ExpertError(
            f"{inputs[0].name} takes images of {height} x {width} px, but tiles have {side} px with their context: "
            f"choose tile + 2 * context = {height}"
        )
    return _Input(options, inputs[0].name, _TYPES[inputs[0].type], layout, batch)


def _output(
    session: Any, options: OnnxOptions, side: int
) -> tuple[tuple[str, ...], Callable[[dict[str, Any]], Any], Kind]:
    """Outputs to ask for, the function that reads them, and the form of the answer."""
    ranks = {each.name: len(each.shape) for each in session.get_outputs()}
    if options.decode == "boxes" or (options.decode is None and set(_NAMED) <= set(ranks)):
        if lacking := set(_NAMED) - set(ranks):
            raise ExpertError(f"the file has no output {min(lacking)!r}, but {', '.join(ranks)}")
        return _NAMED, decode_named, "boxes"
    name = options.output or next(iter(ranks))
    if name not in ranks:
        raise ExpertError(f"the file has no output {name!r}, but {', '.join(ranks)}")
    if options.decode == "yolo":
        return (name,), lambda out: decode_yolo(out[name], side, options.conf, options.iou, options.most), "boxes"
    if options.decode == "rows":
        return (name,), lambda out: decode_rows(out[name], options.conf), "boxes"
    forms: dict[int, Kind] = {4: "map", 2: "classes"}
    kind = options.kind or forms.get(ranks[name])
    if kind is None or kind == "boxes":
        raise ExpertError(
            f"the output {name} has {ranks[name]} axes: say how it is read, by decode= one of "
            f"{', '.join(get_args(Decode))}, by kind=, or take another by output= of {', '.join(ranks)}"
        )
    return (name,), lambda out: probabilities(out[name].astype(np.float32), options.activation), kind


register_expert("onnx", build)
