"""``coarse2fine doctor``: versions and devices for a bug report, and a self-test."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import psutil
import torch

from coarse2fine._version import __version__
from coarse2fine.batch.job import cores
from coarse2fine.bundle import embedded_names
from coarse2fine.config import Config
from coarse2fine.engine import run_analysis
from coarse2fine.model import load_model
from coarse2fine.models.runtime import Runtime
from coarse2fine.progress import Progress
from coarse2fine.terminal import say
from coarse2fine.tiling.opening import open_image

_PACKAGES = (
    *("torch", "numpy", "opencv-python", "scipy", "timm", "imagecodecs", "tifffile", "zarr", "dask", "distributed"),
    *("pandas", "pyarrow", "openslide-python", "openslide-bin", "tensorstore", "fsspec", "h5py", "anndata"),
    *("geopandas", "supervision", "napari"),
)
_CODECS = ("jpeg8", "jpeg2k", "lzw", "zstd", "deflate", "webp", "png", "lerc", "jpegxl", "jpegxr")
_EXTRAS = {
    "openslide": "openslide",
    "remote": "aiohttp",
    "tensorstore": "tensorstore",
    "demo": "sklearn",
    "features": "h5py",
    "pandas": "pandas",
    "benchmark": "skimage",
    "anndata": "anndata",
    "geopandas": "geopandas",
    "supervision": "supervision",
    "napari": "napari",
    "onnx": "onnxruntime",
    "sahi": "sahi",
    "torchvision": "torchvision",
    "ultralytics": "ultralytics",
    "experts-benchmark": "rapidocr_onnxruntime",
}
_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "COARSE2FINE_CACHE")


def doctor_command() -> int:
    """Print versions, settings and devices, and analyse a small image; returns the exit status."""
    say(f"coarse2fine {__version__}, Python {platform.python_version()}, {platform.platform()}")
    say(f"packages   {', '.join(f'{name} {found}' for name in _PACKAGES if (found := _version(name)))}")
    missing = [extra for extra, module in _EXTRAS.items() if find_spec(module) is None]
    say(f"extras     {'all there' if not missing else 'not installed: ' + ', '.join(missing)}")
    say(f"processor  {_cores()}; torch uses {torch.get_num_threads()} thread(s), OpenCV {cv2.getNumThreads()}")
    settings = [f"{name}={os.environ[name]}" for name in _SETTINGS if name in os.environ]
    say(f"settings   {', '.join(settings) or 'none in the environment'}")
    memory = psutil.virtual_memory()
    say(f"memory     {memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f}")
    for place in dict.fromkeys((str(Path.cwd()), tempfile.gettempdir())):
        say(f"disk       {shutil.disk_usage(place).free / 1e9:.1f} GB free at {place}")
    say(f"devices    {_devices()}; the usual one is {Runtime.choose().name}")
    lost = [name for name in _CODECS if not _has_codec(name)]
    say(f"codecs     {', '.join(n for n in _CODECS if n not in lost)}{'; missing: ' + ', '.join(lost) if lost else ''}")
    say(f"models     {', '.join(embedded_names())}")
    return _self_test()


def _self_test() -> int:
    """Analyse a small image with a bright square, from a file with a non-ASCII name."""
    pixels = np.random.default_rng(0).integers(90, 110, (512, 512, 3), dtype=np.uint8)
    pixels[200:280, 300:380] = 250
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Progress(shown=False) as steps:
            path = Path(folder) / "prüfung.png"
            path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
            with open_image(path) as image:
                analysis = run_analysis(image, load_model("generic"), Config(), steps=steps)
                analysis.save(Path(folder) / "out")
    except Exception as error:  # noqa: BLE001 (any error is the result of the test)
        say(f"self-test  FAILED: {type(error).__name__}: {error}")
        return 1
    boxes = [region.full_box for region in analysis.regions]
    found = any(y0 < 280 and y1 > 200 and x0 < 380 and x1 > 300 for y0, x0, y1, x1 in boxes)
    say(f"self-test  {'passed' if found else 'FAILED: a square was not found'} ({time.perf_counter() - start:.1f} s)")
    return 0 if found else 1


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cores() -> str:
    return f"{platform.processor() or platform.machine()}, {cores()} of {os.cpu_count()} cores usable"


def _devices() -> str:
    found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("Apple MPS")
    return ", ".join(["cpu", *found])


def _has_codec(name: str) -> bool:
    return bool(getattr(getattr(imagecodecs, name.upper(), None), "available", False))
