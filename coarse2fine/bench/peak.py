"""Peak memory of this process. Imports nothing, so that nothing is measured but the task."""

from __future__ import annotations

import sys
from pathlib import Path

PEAK_IS_KNOWN = sys.platform != "win32"
"""Whether `peak_memory` works here."""


def peak_memory() -> int:
    """Peak memory of this process in bytes; not on Windows."""
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux `getrusage` includes the memory that the parent held when it started this process.
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:")
    import resource  # noqa: PLC0415 (not on Windows)

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
