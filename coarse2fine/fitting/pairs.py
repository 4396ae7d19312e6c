"""Loading of a fit's images with their annotations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.annotations.read import AnnotationError, Annotations, expand_paths, match_annotations, read_each
from coarse2fine.remembered import open_alike
from coarse2fine.tiling.image import Image

Sources = str | os.PathLike[str] | NDArray[Any] | Image | dict[str, Any] | Sequence[Any]


def load_pairs(
    images: Sources,
    annotations: Sources | None,
    channels: int | Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
) -> list[tuple[Image, Annotations]]:
    """Load images with their annotations; files are matched by name, all else by order.

    Parameters
    ----------
    images, annotations, channels, value_range
        See `fit`.

    Raises
    ------
    AnnotationError, ImageError
        If one cannot be read, they do not match, or nothing is annotated.
    ValueError
        If there are no annotations.
    """
    images = [images] if isinstance(images, np.ndarray | Image) else images
    by_name = isinstance(images, str | os.PathLike) or all(isinstance(i, str | os.PathLike) for i in images)
    if by_folder := annotations is None:
        annotations = _beside(expand_paths(images) if by_name else [])  # type: ignore[arg-type]
    texts: Any = [annotations] if isinstance(annotations, dict) else annotations
    texts = texts if isinstance(texts, str | os.PathLike) else list(texts)
    named = by_name and not (isinstance(texts, list) and any(isinstance(t, dict) for t in texts))
    # A list keeps its order if images and annotations are matched by order.
    expand = named or isinstance(images, str | os.PathLike)
    sources: list[Any] = list(expand_paths(images) if expand else images)  # type: ignore[arg-type]
    if named:
        try:
            matched: list[Any] = list(match_annotations(sources, texts))
        except AnnotationError as error:
            if not by_folder:
                raise
            raise AnnotationError(f"{error}; name the annotations, or an expert to watch (see expert=)") from error
    else:
        matched = [texts] if isinstance(texts, str | os.PathLike) else texts
    if len(matched) != len(sources):
        raise AnnotationError(f"expected one annotation for each image, got {len(matched)} for {len(sources)}")
    opened = open_alike(sources, channels, value_range)
    known = [text if isinstance(text, dict) else Path(text) for text in matched]
    pairs = list(zip(opened, read_each(known, opened), strict=True))
    if not any(annotated.objects for _, annotated in pairs):
        raise AnnotationError("the annotations hold no object of any class: there is nothing to learn from")
    return pairs


def _beside(images: Sequence[Path]) -> str:
    """The folder of the images, if they lie in one."""
    folders = {path.parent.resolve() for path in images}
    if len(folders) != 1:
        why = "the images lie in several folders" if folders else "images that are not files have none beside them"
        raise ValueError(
            f"there is nothing to learn from: give annotations ({why}), or an expert to watch (see expert=)"
        )
    return str(folders.pop())


def load_images(
    images: Sources, channels: int | Sequence[int] | None = None, value_range: tuple[float, float] | None = None
) -> list[Image]:
    """Open the images of a fit without annotations; parameters as in `load_pairs`.

    Raises
    ------
    ImageError
        If one cannot be read.
    """
    if isinstance(images, np.ndarray | Image):
        sources: list[Any] = [images]
    else:
        sources = list(expand_paths(images)) if isinstance(images, str | os.PathLike) else list(images)
    return open_alike(sources, channels, value_range)
