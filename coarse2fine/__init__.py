"""Look at a gigapixel image cheaply everywhere, and closely only where it matters."""

import coarse2fine._environment  # noqa: F401 (before OpenCV and torch)
from coarse2fine._version import __version__
from coarse2fine.annotations.read import AnnotationError
from coarse2fine.audit.result import Audit
from coarse2fine.batch import Batch, analyze_folder
from coarse2fine.engine import analyze
from coarse2fine.fitting.fit import fit
from coarse2fine.model import Geometry, Model, load_model
from coarse2fine.models.errors import ModelError
from coarse2fine.region import Region
from coarse2fine.results.analysis import Analysis
from coarse2fine.results.cost import Cost
from coarse2fine.tiling.conversion.convert import convert
from coarse2fine.tiling.errors import ImageError
from coarse2fine.tiling.image import Image
from coarse2fine.tiling.opening import open_image

__all__ = [
    "Analysis",
    "AnnotationError",
    "Audit",
    "Batch",
    "Cost",
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
    "fit",
    "load_model",
    "open_image",
]
