"""Settings that libraries read when they are loaded: imported before all else. What the user has set stays."""

import os

# OpenCV's own limit is half of ours.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**31))
# OpenMP's threads else spin while they wait. Beside our decoding threads, or another program, they then keep those that
# have work from a processor: on two busy cores a refinement took ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
