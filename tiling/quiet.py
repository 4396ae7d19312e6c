"""What libraries log of damaged files, kept off the terminal while files are read and not otherwise."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_LOGGERS = (logging.getLogger("tifffile"), logging.getLogger("imagecodecs"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Take what would go to the terminal of who has not set up logging; who has still gets it. For any thread."""
    handler = logging.NullHandler()
    for logger in _LOGGERS:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in _LOGGERS:
            logger.removeHandler(handler)
