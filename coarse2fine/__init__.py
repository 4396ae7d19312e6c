"""Scan a gigapixel image at low resolution, and refine only the windows that matter."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import coarse2fine._environment  # noqa: F401 (before OpenCV and torch)
from coarse2fine._version import __version__

if TYPE_CHECKING:
    from coarse2fine.annotations.read import AnnotationError
    from coarse2fine.audit.result import Audit
    from coarse2fine.bases import register_base
    from coarse2fine.batch.run import analyze_folder
    from coarse2fine.batch.summary import BatchResult
    from coarse2fine.engine import analyze
    from coarse2fine.experts.adapter import Adapter, register_expert
    from coarse2fine.experts.errors import ExpertError
    from coarse2fine.experts.expert import Expert, expert
    from coarse2fine.fitting.fit import fit
    from coarse2fine.model import Geometry, Model, load_model
    from coarse2fine.models.errors import ModelError
    from coarse2fine.refiners.registry import register_refiner
    from coarse2fine.region import Region
    from coarse2fine.results.analysis import Analysis
    from coarse2fine.results.cost import Cost
    from coarse2fine.results.exporters import register_exporter
    from coarse2fine.tiling.conversion.convert import convert
    from coarse2fine.tiling.errors import ImageError
    from coarse2fine.tiling.formats.registry import Format, register_format
    from coarse2fine.tiling.image import Image
    from coarse2fine.tiling.opening import open_image

__all__ = [
    "Adapter",
    "Analysis",
    "AnnotationError",
    "Audit",
    "BatchResult",
    "Cost",
    "Expert",
    "ExpertError",
    "Format",
    "Geometry",
    "Image",
    "ImageError",
    "Model",
    "ModelError",
    "Region",
    "__version__",
    "analyze",
    "analyze_folder",
    "convert",
    "expert",
    "fit",
    "load_model",
    "open_image",
    "register_base",
    "register_expert",
    "register_exporter",
    "register_format",
    "register_refiner",
]

# Each is imported when it is first asked for, so that `import coarse2fine` and the command's help take no time.
_HOMES = {
    "Adapter": "coarse2fine.experts.adapter",
    "Analysis": "coarse2fine.results.analysis",
    "AnnotationError": "coarse2fine.annotations.read",
    "Audit": "coarse2fine.audit.result",
    "BatchResult": "coarse2fine.batch.summary",
    "Cost": "coarse2fine.results.cost",
    "Expert": "coarse2fine.experts.expert",
    "ExpertError": "coarse2fine.experts.errors",
    "Format": "coarse2fine.tiling.formats.registry",
    "Geometry": "coarse2fine.model",
    "Image": "coarse2fine.tiling.image",
    "ImageError": "coarse2fine.tiling.errors",
    "Model": "coarse2fine.model",
    "ModelError": "coarse2fine.models.errors",
    "Region": "coarse2fine.region",
    "analyze": "coarse2fine.engine",
    "analyze_folder": "coarse2fine.batch.run",
    "convert": "coarse2fine.tiling.conversion.convert",
    "expert": "coarse2fine.experts.expert",
    "fit": "coarse2fine.fitting.fit",
    "load_model": "coarse2fine.model",
    "open_image": "coarse2fine.tiling.opening",
    "register_base": "coarse2fine.bases",
    "register_expert": "coarse2fine.experts.adapter",
    "register_exporter": "coarse2fine.results.exporters",
    "register_format": "coarse2fine.tiling.formats.registry",
    "register_refiner": "coarse2fine.refiners.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
