"""Errors of models."""

from __future__ import annotations


class ModelError(ValueError):
    """Raised if a model cannot be loaded; the message names the file, the cause and the remedy."""
