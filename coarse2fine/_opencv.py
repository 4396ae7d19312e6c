"""Settings that OpenCV reads when it is loaded: imported before all else."""

import os

# OpenCV's own limit is half of ours.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**31))
