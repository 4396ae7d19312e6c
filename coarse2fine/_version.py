"""Version of coarse2fine, and of the packages it depends on."""

from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("numpy", "torch", "timm", "opencv-python", "scipy", "imagecodecs", "tifffile", "zarr")


__version__ = "0.2.0"


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that an analysis depends on most, if installed under these names."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
