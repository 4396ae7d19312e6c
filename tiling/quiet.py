"""Suppression of library log messages about damaged files, only while files are read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_LOGGERS = (logging.getLogger("tifffile"), logging.getLogger("imagecodecs"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep log messages off the terminal if logging is not set up; existing handlers still get them. Thread-safe."""
    handler = logging.NullHandler()
    for logger in _LOGGERS:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in _LOGGERS:
            logger.removeHandler(handler)
