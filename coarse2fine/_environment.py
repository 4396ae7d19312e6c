"""Environment variables that libraries read on import; imported before all else. The user's own values are kept."""

import os

# OpenCV's own limit is half of ours.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**31))
# By default, waiting OpenMP threads spin and take cores from our decoding threads and from other programs: on two busy
# cores a refinement took ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
