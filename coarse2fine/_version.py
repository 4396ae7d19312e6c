"""The one place where the version stands."""

from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("numpy", "torch", "timm", "opencv-python", "scipy", "imagecodecs", "tifffile", "zarr")


__version__ = "0.1.0"


@cache
def versions() -> dict[str, str]:
    """Versions of what an analysis depends on most, as far as they are installed under these names."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
